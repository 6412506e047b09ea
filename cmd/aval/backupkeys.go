// This file holds the encryption of backups: age recipients on the way out,
// age identities on the way back.

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"

	"github.com/aval-id/aval/audit"
)

// ageHeader begins what age encrypted.
const ageHeader = "age-encryption.org/v1\n"

// parseRecipients reads recipients, each of which names itself in its error.
func parseRecipients(texts []string) ([]age.Recipient, error) {
	var out []age.Recipient
	for _, text := range texts {
		if strings.HasPrefix(text, "AGE-SECRET-KEY-") {
			return nil, errors.New("--recipient is a secret key; give its public half, age1…, as age-keygen -y prints it")
		}
		r, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil || strings.ContainsAny(text, "\r\n") {
			return nil, fmt.Errorf("--recipient %q is not an age recipient such as age1…", text)
		}
		out = append(out, r...)
	}
	return out, nil
}

// openBackup returns the path of a backup in the clear and what to do once it
// is no longer needed. An encrypted one is decrypted into the data directory,
// which holds the same in the clear.
func openBackup(dataDir, input, identity string) (path string, done func(), err error) {
	f, err := os.Open(input)
	if err != nil {
		return "", nil, fmt.Errorf("restore: %w", err)
	}
	defer f.Close()
	head := make([]byte, len(ageHeader))
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", nil, fmt.Errorf("restore: %w", err)
	}
	encrypted := string(head[:n]) == ageHeader
	switch {
	case encrypted && identity == "":
		return "", nil, hinted(fmt.Errorf("restore: %s is encrypted", input), exitNegative,
			"--identity FILE names the age identity that opens it")
	case !encrypted && identity != "":
		return "", nil, hinted(fmt.Errorf("restore: %s is not encrypted, and --identity says that it should be", input), exitNegative,
			"leave --identity out if you trust where the file lay")
	case !encrypted:
		return input, func() {}, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", nil, fmt.Errorf("restore: %w", err)
	}
	return decryptBackup(f, dataDir, identity)
}

// decryptBackup does openBackup's work on an encrypted one.
func decryptBackup(f *os.File, dataDir, identity string) (path string, done func(), err error) {
	keys, err := readIdentities(identity)
	if err != nil {
		return "", nil, usage(fmt.Errorf("restore: --identity: %w", err))
	}
	clear, err := age.Decrypt(f, keys...)
	if _, none := errors.AsType[*age.NoIdentityMatchError](err); none {
		return "", nil, hinted(fmt.Errorf("restore: %s is encrypted to another recipient than the identities in %s", f.Name(), identity), exitNegative,
			"age-keygen -y %s prints the recipients that they belong to", identity)
	}
	if err != nil {
		return "", nil, fmt.Errorf("restore: decrypt %s: %w", f.Name(), err)
	}
	if err := audit.PrivateDir(dataDir); err != nil {
		return "", nil, fmt.Errorf("restore: %w", err)
	}
	out, err := os.CreateTemp(dataDir, ".restore-*") // mode 0600
	if err != nil {
		return "", nil, fmt.Errorf("restore: %w", err)
	}
	remove := func() { os.Remove(out.Name()) }
	_, err = io.Copy(out, clear)
	if err = errors.Join(err, out.Close()); err != nil {
		remove()
		return "", nil, fmt.Errorf("restore: decrypt %s, which is damaged or cut off: %w", f.Name(), err)
	}
	return out.Name(), remove, nil
}

// readIdentities reads a file of age identities. What it holds is in no error.
func readIdentities(path string) ([]age.Identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	keys, err := age.ParseIdentities(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("%s holds no age identities, lines that begin with AGE-SECRET-KEY-", path)
	}
	return keys, nil
}
