// This file holds the comparison of issuance under roots in different homes:
// they sign intermediates alone, so that no leaf should know them apart.

package bench

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/aval-id/aval/ca/keys"
	"github.com/aval-id/aval/ca/server"
	"github.com/aval-id/aval/ca/vault"
	"github.com/aval-id/aval/ca/vault/vaulttest"
	"github.com/aval-id/aval/cmd/measure"
)

// BenchmarkIssueByRoot is the server's CPU for each SVID, in batches of 50,
// under a root in Vault's transit engine, and with the signature of each leaf
// verified in place of one in a hundred, beside a root in a file.
func BenchmarkIssueByRoot(b *testing.B) {
	v := vaulttest.Start(b)
	v.Mount(b, "transit", "transit")
	v.Write(b, "transit/keys/root", map[string]any{"type": "ecdsa-p256"})
	token := filepath.Join(b.TempDir(), "token")
	if err := os.WriteFile(token, []byte(v.Token), 0o600); err != nil {
		b.Fatal(err)
	}
	source, err := keys.ParseSecret("file:" + token)
	if err != nil {
		b.Fatal(err)
	}
	client, err := vault.New(vault.Config{Address: v.Address, CAFile: v.CAFile, Auth: vault.Auth{Method: vault.MethodToken, Token: source}})
	if err != nil {
		b.Fatal(err)
	}
	transit, err := vault.NewTransit(client, vault.TransitConfig{Key: "root"})
	if err != nil {
		b.Fatal(err)
	}
	sides := []struct {
		name   string
		server *benchServer
	}{
		{"root in Vault", startServer(b, func(c *server.Config) { c.RootKeyHome = transit })},
		{"every leaf verified", startServer(b, func(c *server.Config) { c.VerifyLeaves = 1 })},
		{"root in a file", startServer(b, nil)},
	}
	for b.Loop() {
		var turns []func() float64
		for _, side := range sides {
			side.server.order(b, 50, 400) // warm
			turns = append(turns, func() float64 {
				before := measure.OwnCPU(b)
				side.server.order(b, 50, perRound)
				return float64((measure.OwnCPU(b) - before).Microseconds()) / perRound
			})
		}
		costs := measure.Interleave(measure.Rounds, turns...)
		for i, most := range []float64{1.1, 0} {
			measure.Figure{What: "SVID in batches of 50, " + sides[i].name, Unit: "µs of CPU", Ours: costs[i],
				Beside: sides[2].name, Baseline: costs[2], Most: most}.Tell(b)
		}
	}
}
