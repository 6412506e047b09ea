// This file holds what a PKCS#11 URI (RFC 7512) must say.

package keys

import "fmt"

// checkPKCS11 checks the attributes and returns where the PIN is found.
func checkPKCS11(l location) (pin Secret, err error) {
	if err := l.only("module-path", "token", "serial", "slot-id", "id", "object", "pin-source"); err != nil {
		return Secret{}, err
	}
	if _, err := l.path("module-path"); err != nil {
		return Secret{}, err
	}
	named := 0
	for _, name := range []string{"token", "serial", "slot-id"} {
		if l.get(name) != "" {
			named++
		}
	}
	switch {
	case named != 1:
		return Secret{}, fmt.Errorf("key URI: exactly one of token=, serial= and slot-id= names the token")
	case l.get("id") == "" || l.get("object") == "":
		return Secret{}, fmt.Errorf("key URI: id= (hex) and object= name the key in the token")
	}
	if pin, err = ParseSecret(l.get("pin-source")); err != nil {
		return Secret{}, fmt.Errorf("key URI: pin-source: %w", err)
	}
	return pin, nil
}
