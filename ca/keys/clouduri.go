// This file holds what the URI of a key in a cloud's service must say. It is
// checked in every binary, so that a mistake shows before the wait for a
// network.

package keys

import (
	"fmt"
	"regexp"
)

func checkAWS(l location) error {
	if err := l.only("key-id", "region", "profile", "credentials-file"); err != nil {
		return err
	}
	if l.get("key-id") == "" {
		return fmt.Errorf("key URI: key-id= of the key in AWS KMS is missing: an ID, an ARN, or alias/NAME")
	}
	return nil
}

// googleName is the resource name of one version of a key.
var googleName = regexp.MustCompile(`^projects/[^/;=]+/locations/[^/;=]+/keyRings/[^/;=]+/cryptoKeys/[^/;=]+/cryptoKeyVersions/[0-9]+$`)

// checkGoogle returns the resource name. It stands as resource=NAME.
func checkGoogle(l location) (string, error) {
	if err := l.only("resource", "credentials-file"); err != nil {
		return "", err
	}
	if !googleName.MatchString(l.get("resource")) {
		return "", fmt.Errorf("key URI: resource= is not the name of a key's version: projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/N")
	}
	return l.get("resource"), nil
}

func checkAzure(l location) error {
	if err := l.only("name", "vault", "version", "environment", "tenant-id"); err != nil {
		return err
	}
	if l.get("name") == "" || l.get("vault") == "" {
		return fmt.Errorf("key URI: name= of the key and vault= of the Key Vault are needed")
	}
	return nil
}
