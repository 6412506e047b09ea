# What an Aval server may do in Vault or OpenBao whose transit engine holds the
# root's key. It can sign with the key, and neither make, rotate, export nor
# delete it. Replace transit and aval-root where they are called otherwise.

path "transit/keys/aval-root" {
  capabilities = ["read"]
}

path "transit/sign/aval-root" {
  capabilities = ["update"]
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
