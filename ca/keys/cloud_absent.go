// This file holds the answer of a binary without the SDKs of the clouds.

//go:build !full

package keys

import "fmt"

func awsHome(l location) (home, error) {
	if err := checkAWS(l); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("key URI: AWS KMS is %w", ErrNotBuiltIn)
}

func googleHome(l location) (home, error) {
	if _, err := checkGoogle(l); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("key URI: Google Cloud KMS is %w", ErrNotBuiltIn)
}

func azureHome(l location) (home, error) {
	if err := checkAzure(l); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("key URI: Azure Key Vault is %w", ErrNotBuiltIn)
}
