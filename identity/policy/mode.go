// This file holds Mode: which connections must be mTLS.

package policy

import "fmt"

// Mode says what a workload's port accepts. The zero value is Unset.
type Mode uint8

// The modes, from the most open to the strictest.
const (
	Unset      Mode = iota // inherit from the wider scope
	Disable                // plaintext only; the proxy offers no TLS
	Permissive             // mTLS and plaintext, told apart by the first bytes
	Strict                 // valid mTLS only
)

var modeNames = [...]string{Unset: "UNSET", Disable: "DISABLE", Permissive: "PERMISSIVE", Strict: "STRICT"}

// String returns the name that documents use.
func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// ParseMode parses the name that documents use.
func ParseMode(s string) (Mode, error) {
	for m, name := range modeNames {
		if s == name {
			return Mode(m), nil
		}
	}
	return Unset, fmt.Errorf("mode %q is not one of UNSET, DISABLE, PERMISSIVE, STRICT", s)
}

// MarshalText prints the mode.
func (m Mode) MarshalText() ([]byte, error) {
	if int(m) >= len(modeNames) {
		return nil, fmt.Errorf("mode %d does not exist", uint8(m))
	}
	return []byte(m.String()), nil
}

// UnmarshalText parses a mode.
func (m *Mode) UnmarshalText(b []byte) error {
	v, err := ParseMode(string(b))
	if err != nil {
		return err
	}
	*m = v
	return nil
}

// AdmitsPlaintext reports whether the mode lets policies decide about a peer
// without identity. Unset and unknown modes do not.
func (m Mode) AdmitsPlaintext() bool {
	switch m {
	case Disable, Permissive:
		return true
	}
	return false
}
