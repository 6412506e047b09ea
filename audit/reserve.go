// This file holds the reserve: disk kept back so that administration can
// still be recorded when the disk is full.

package audit

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// reserveStep is how much of the reserve is given up at a time.
const reserveStep = 1 << 20

// reserve is a file whose blocks are allocated and hold nothing. It has one
// user at a time.
type reserve struct {
	path string
	want int64 // bytes to hold; 0 where there is no reserve
	have int64 // bytes held
}

// fill allocates the whole reserve, or leaves what there was: an error that
// noSpace knows means that the disk is full.
func (r *reserve) fill() error {
	if r.have >= r.want {
		return nil
	}
	f, err := os.OpenFile(r.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("reserve: %w", err)
	}
	defer f.Close()
	if err := allocate(f, r.want); err != nil {
		err = fmt.Errorf("reserve: allocate %d bytes: %w", r.want, err)
		return errors.Join(err, f.Truncate(r.have))
	}
	r.have = r.want
	return nil
}

// allocate gives the file n bytes of disk, by writing where the file system
// has no way to reserve them.
func allocate(f *os.File, n int64) error {
	err := retryInterrupted(func() error { return syscall.Fallocate(int(f.Fd()), 0, 0, n) })
	if !errors.Is(err, syscall.EOPNOTSUPP) {
		return err
	}
	zeros := make([]byte, 64<<10)
	for at := int64(0); at < n; at += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), n-at)], at); err != nil {
			return err
		}
	}
	return f.Sync()
}

// release gives up one step and reports whether there was one.
func (r *reserve) release() bool {
	if r.have == 0 {
		return false
	}
	left := max(0, r.have-reserveStep)
	if err := os.Truncate(r.path, left); err != nil {
		return false
	}
	r.have = left
	return true
}

// remove deletes the file of a log that shall have no reserve any more.
func (r *reserve) remove() error {
	if err := os.Remove(r.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("reserve: %w", err)
	}
	return nil
}

// noSpace reports whether an error means that the disk or the quota of the
// file system is exhausted.
func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// retryInterrupted repeats a system call that a signal broke off.
func retryInterrupted(call func() error) error {
	for {
		if err := call(); err != syscall.EINTR {
			return err
		}
	}
}
