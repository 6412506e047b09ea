// This file holds the tests of a disk that is full or fails.

package audit

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// faultyFile fails as its switches say.
type faultyFile struct {
	segmentFile
	faults *faults
}

type faults struct {
	write, sync, truncate error
}

func (f faultyFile) WriteAt(p []byte, off int64) (int, error) {
	if f.faults.write != nil {
		n, _ := f.segmentFile.WriteAt(p[:len(p)/2], off) // a part reaches the disk
		return n, f.faults.write
	}
	return f.segmentFile.WriteAt(p, off)
}

func (f faultyFile) Datasync() error {
	return errors.Join(f.faults.sync, f.segmentFile.Datasync())
}

func (f faultyFile) Truncate(n int64) error {
	return errors.Join(f.faults.truncate, f.segmentFile.Truncate(n))
}

func faultyLog(t *testing.T) (*Log, *faults) {
	t.Helper()
	cfg := testConfig(memoryDir(t))
	fs := &faults{}
	cfg.openFile = func(path string, create bool) (segmentFile, error) {
		f, err := openDiskFile(path, create)
		return faultyFile{f, fs}, err
	}
	return mustOpen(t, cfg), fs
}

func TestFullDiskStoresNothingAndIsOvercome(t *testing.T) {
	l, faults := faultyLog(t)
	fill(t, l, 3)
	faults.write = syscall.ENOSPC
	for range 3 {
		if _, err := l.Record(t.Context(), testEvent(3)); !errors.Is(err, ErrDiskFull) {
			t.Fatalf("record on a full disk: %v", err)
		}
	}
	if s := l.Stats(); s.Entries != 3 || !s.Full || s.Refused != 3 {
		t.Fatalf("%+v", s)
	}
	faults.write = nil
	if r := mustRecord(t, l, testEvent(4)); r.Index != 3 {
		t.Fatalf("index %d", r.Index)
	}
	checkpointNow(t, l)
	if r := mustVerify(t, l, VerifyOptions{}); !r.Verified || r.Entries != 4 {
		t.Fatalf("%+v", r)
	}
	if l.Stats().Full {
		t.Error("still counts as full")
	}
}

func TestRefusedSyncEndsTheLogUntilItIsOpenedAgain(t *testing.T) {
	for name, set := range map[string]func(*faults){
		"sync":     func(f *faults) { f.sync = syscall.EIO },
		"truncate": func(f *faults) { f.write, f.truncate = syscall.ENOSPC, syscall.EIO },
	} {
		t.Run(name, func(t *testing.T) {
			l, f := faultyLog(t)
			fill(t, l, 3)
			checkpointNow(t, l)
			set(f)
			if _, err := l.Record(t.Context(), testEvent(3)); err == nil {
				t.Fatal("recorded")
			}
			*f = faults{}
			_, err := l.Record(t.Context(), testEvent(4))
			if err == nil || errors.Is(err, ErrDiskFull) || !strings.Contains(err.Error(), "opened again") {
				t.Fatalf("record after a failed sync: %v", err)
			}
			if err := l.Run(t.Context()); !errors.Is(err, errBroken) {
				t.Fatalf("run: %v", err)
			}
			l.Close()
			l = mustOpen(t, testConfig(l.cfg.Dir))
			mustRecord(t, l, testEvent(5))
		})
	}
}

// smallDisk mounts a file system of its own, or skips the test.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestAdministrationGoesOnFromTheReserve(t *testing.T) {
	disk := smallDisk(t, "size=12m")
	cfg := testConfig(filepath.Join(disk, "log"))
	cfg.Reserve = 4 << 20
	l := mustOpen(t, cfg)
	fill(t, l, 10)
	hog := filepath.Join(disk, "hog")
	f, err := os.Create(hog)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	f.Close()
	if !noSpace(err) {
		t.Fatalf("filling the disk: %v", err)
	}

	stopped := 0
	for i := range 100 {
		if _, err := l.Record(t.Context(), testEvent(i)); errors.Is(err, ErrDiskFull) {
			stopped++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if stopped < 80 || !l.Stats().Full {
		t.Fatalf("%d of 100 were refused, %+v", stopped, l.Stats())
	}
	evict := Event{Time: testTime, Kind: KindNodeEvicted, Node: "n", Detail: strings.Repeat("why ", 500)}
	for range 200 {
		mustRecord(t, l, evict)
		if _, err := l.Record(t.Context(), testEvent(0)); !errors.Is(err, ErrDiskFull) {
			t.Fatalf("issuance while the reserve is in use: %v", err)
		}
	}
	if s := l.Stats(); s.ReserveBytes >= cfg.Reserve || s.ReserveBytes == 0 {
		t.Fatalf("%+v", s)
	}
	checkpointNow(t, l)
	if r := mustVerify(t, l, VerifyOptions{}); !r.Verified {
		t.Fatalf("%+v", r)
	}
	for err = nil; err == nil; {
		_, err = l.Record(t.Context(), evict)
	}
	if !errors.Is(err, ErrDiskFull) || l.Stats().ReserveBytes != 0 {
		t.Fatalf("the end of the reserve: %v, %+v", err, l.Stats())
	}

	if err := os.Remove(hog); err != nil {
		t.Fatal(err)
	}
	mustRecord(t, l, testEvent(1))
	if s := l.Stats(); s.Full || s.ReserveBytes != cfg.Reserve {
		t.Fatalf("after space came back: %+v", s)
	}
	checkpointNow(t, l)
	if r := mustVerify(t, l, VerifyOptions{}); !r.Verified {
		t.Fatalf("%+v", r)
	}
}
