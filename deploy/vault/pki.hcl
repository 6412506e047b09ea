# What an Aval server may do in Vault or OpenBao whose pki engine signs its
# intermediates. No path here needs sudo. Mount and issuer are those of the
# configuration: replace pki, and name the issuer's path instead of the first
# where one is set.

path "pki/root/sign-intermediate" {
  capabilities = ["update"]
}

# path "pki/issuer/NAME/sign-intermediate" {
#   capabilities = ["update"]
# }

# Once, at the first start, where the root is pinned by its hash.
path "pki/issuer/default/json" {
  capabilities = ["read"]
}

# The server's own login.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}
