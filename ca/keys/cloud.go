// This file holds keys in the key services of AWS, Google and Azure. Each
// SDK finds its credentials as it does everywhere: in the environment, the
// machine's role, or its own files.

//go:build full

package keys

import (
	"context"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/awskms"
	"go.step.sm/crypto/kms/azurekms"
	"go.step.sm/crypto/kms/cloudkms"
)

func awsHome(l location) (home, error) {
	if err := checkAWS(l); err != nil {
		return nil, err
	}
	return device{name: "AWS KMS", key: l.text("region", "profile", "credentials-file"),
		connect: func(ctx context.Context) (apiv1.KeyManager, error) {
			return awskms.New(ctx, apiv1.Options{URI: l.text("key-id")})
		}}, nil
}

func googleHome(l location) (home, error) {
	name, err := checkGoogle(l)
	if err != nil {
		return nil, err
	}
	return device{name: "Google Cloud KMS", key: name,
		connect: func(ctx context.Context) (apiv1.KeyManager, error) {
			return cloudkms.New(ctx, apiv1.Options{CredentialsFile: l.get("credentials-file")})
		}}, nil
}

func azureHome(l location) (home, error) {
	if err := checkAzure(l); err != nil {
		return nil, err
	}
	return device{name: "Azure Key Vault", key: l.text("environment", "tenant-id", "client-id"),
		connect: func(ctx context.Context) (apiv1.KeyManager, error) {
			return azurekms.New(ctx, apiv1.Options{URI: l.text("name", "version")})
		}}, nil
}
