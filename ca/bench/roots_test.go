// This file holds the comparison of issuance under roots in different homes:
// they sign intermediates alone, so that no leaf should know them apart.

package bench

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aval-id/aval/ca/keys"
	"github.com/aval-id/aval/ca/server"
	"github.com/aval-id/aval/ca/vault"
	"github.com/aval-id/aval/ca/vault/vaulttest"
)

// BenchmarkIssueByRoot reports the server's CPU for each SVID, in batches of
// 50, under a root in Vault's transit engine as a ratio to one in a file, and
// with the signature of each leaf verified as a ratio to one in a hundred.
// Rounds are interleaved, medians are reported.
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
	roots := map[string]*benchServer{
		"file":     startServer(b, nil),
		"vault":    startServer(b, func(c *server.Config) { c.RootKeyHome = transit }),
		"verified": startServer(b, func(c *server.Config) { c.VerifyLeaves = 1 }),
	}
	samples, took := map[string][]float64{}, map[string][]float64{}
	for b.Loop() {
		clear(samples)
		clear(took)
		for _, s := range roots {
			s.order(b, 50, 400) // warm
		}
		for range rounds {
			for name, s := range roots {
				start, wall := cpu(b), time.Now()
				s.order(b, 50, perRound)
				samples[name] = append(samples[name], float64((cpu(b)-start).Microseconds())/perRound)
				took[name] = append(took[name], perRound/time.Since(wall).Seconds())
			}
		}
	}
	base := median(samples["file"])
	b.ReportMetric(base, "us_file")
	b.ReportMetric(median(samples["vault"]), "us_vault")
	b.ReportMetric(median(samples["vault"])/base, "ratio_vault")
	b.ReportMetric(median(samples["verified"])/base, "ratio_verified")
	b.ReportMetric(median(took["file"]), "svids/s_file")
	b.ReportMetric(median(took["vault"]), "svids/s_vault")
}
