// This file holds the verbs on authorities: what is in force, and the way to a
// root that is elsewhere.

package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/aval-id/aval/ca/keys"
	"github.com/aval-id/aval/ca/server"
	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/identity/wire"
	"github.com/spf13/cobra"
)

// maxPEM bounds a file of certificates.
const maxPEM = 1 << 20

func (c *cli) caCommand() *cobra.Command {
	return group("ca", "The authorities: root, intermediate, and who signs", c.caStatusCommand(), c.caCSRCommand(), c.caImportCommand())
}

func (c *cli) caStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show the authorities in force and who signs the intermediate", Args: takes(),
		Long: `Status shows the root, the intermediate and the server's own SVID, and who
signs the next intermediate: the server's own root key, Vault, or a person. It
exits with 1 where the last signature failed.`,
		Example: "  aval ca status\n  aval ca status -o json",
	}
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		return c.admin(ctx, func(admin wire.AdminClient) error { return c.caStatus(ctx, admin) })
	})
	return cmd
}

// authority is an authority as this command prints it.
type authority struct {
	Role     string    `json:"role"`
	KeyType  string    `json:"key_type"`
	Subject  string    `json:"subject"`
	Issuer   string    `json:"issuer"`
	Serial   string    `json:"serial"`
	SKI      string    `json:"ski"`
	Hash     string    `json:"hash"`
	NotAfter time.Time `json:"not_after"`
}

// signer is who signs the intermediates, as this command prints it.
type signer struct {
	Name     string     `json:"name"`
	ByHand   bool       `json:"by_hand"`
	Failures uint32     `json:"failures"`
	Error    string     `json:"error,omitempty"`
	Signed   *time.Time `json:"signed,omitempty"`
	Next     *time.Time `json:"next,omitempty"`
}

func toAuthority(a *wire.AuthorityState) authority {
	return authority{a.GetRole(), a.GetKeyType(), a.GetSubject(), a.GetIssuer(), a.GetSerial(), a.GetSki(), a.GetHash(), stamp(a.GetNotAfter())}
}

func toSigner(u *wire.UpstreamState) signer {
	s := signer{Name: u.GetName(), ByHand: u.GetByHand(), Failures: u.GetFailures(), Error: u.GetError()}
	if u.GetSigned() != 0 {
		t := stamp(u.GetSigned())
		s.Signed = &t
	}
	if u.GetNext() != 0 {
		t := stamp(u.GetNext())
		s.Next = &t
	}
	return s
}

func (c *cli) caStatus(ctx context.Context, admin wire.AdminClient) error {
	st, err := admin.ServerStatus(ctx, &wire.ServerStatusRequest{})
	if err != nil {
		return called("ca status", err)
	}
	out := struct {
		TrustDomain string      `json:"trust_domain"`
		Authorities []authority `json:"authorities"`
		Upstream    signer      `json:"upstream"`
	}{TrustDomain: st.GetTrustDomain(), Upstream: toSigner(st.GetUpstream())}
	for _, a := range st.GetAuthorities() {
		out.Authorities = append(out.Authorities, toAuthority(a))
	}
	err = c.show(out, func() error {
		now := time.Now()
		t := table{heading: []string{"ROLE", "KEY", "ENDS", "HASH", "SUBJECT"}}
		for _, a := range out.Authorities {
			t.add(a.Role, a.KeyType, ago(a.NotAfter, now), a.Hash, plain(a.Subject))
		}
		if err := t.print(c.out); err != nil {
			return err
		}
		u := out.Upstream
		fmt.Fprintf(c.out, "signed by: %s\n", plain(u.Name))
		if u.Error != "" {
			fmt.Fprintf(c.out, "last attempt: %s (%s)\n", plain(u.Error), plural(int(u.Failures), "failure"))
			if u.Next != nil {
				fmt.Fprintf(c.out, "next attempt: %s\n", ago(*u.Next, now))
			}
		}
		return nil
	})
	if err == nil && out.Upstream.Error != "" {
		return negative()
	}
	return err
}

// atRest is where a server's data is that does not run.
type atRest struct{ dataDir, trustDomain, issuerKeyType string }

func (r *atRest) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.dataDir, "data-dir", "", "data directory of a server that does not run, instead of --admin-socket")
	cmd.Flags().StringVar(&r.trustDomain, "trust-domain", "", "its trust domain, with --data-dir")
}

func (r *atRest) config() (server.Config, error) {
	if r.trustDomain == "" {
		return server.Config{}, usage(errors.New("--trust-domain is missing: --data-dir needs it"))
	}
	td, err := identity.ParseTrustDomain(r.trustDomain)
	if err != nil {
		return server.Config{}, usage(err)
	}
	return server.Config{TrustDomain: td, DataDir: r.dataDir, IssuerKeyType: identity.KeyType(r.issuerKeyType)}, nil
}

func (c *cli) caCSRCommand() *cobra.Command {
	var rest atRest
	cmd := &cobra.Command{
		Use: "csr", Short: "Print the request for this server's intermediate", Args: takes(),
		Long: `Csr prints a PKCS#10 request for the server's intermediate, to be signed by a
root that the server can't reach. Its key is made and kept in the data
directory; while it waits for its certificate, the same request's key is used
again. What was signed comes back by aval ca import.

Before the first start, and while no server runs, name its --data-dir.`,
		Example: `  aval ca csr > aval.csr
  aval ca csr --data-dir /var/lib/aval/server --trust-domain example.org > aval.csr
  openssl x509 -req -in aval.csr -CA root.pem -CAkey root.key -days 90 -copy_extensions copyall -out aval.pem`,
	}
	rest.flags(cmd)
	cmd.Flags().StringVar(&rest.issuerKeyType, "issuer-key-type", "", "kind of the intermediate's key, with --data-dir (default P-256)")
	c.adminFlag(cmd)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		der, err := c.csr(ctx, rest)
		if err != nil {
			return err
		}
		return pem.Encode(c.out, &pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	})
	return cmd
}

func (c *cli) csr(ctx context.Context, rest atRest) (der []byte, err error) {
	if rest.dataDir != "" {
		cfg, err := rest.config()
		if err != nil {
			return nil, err
		}
		return server.RequestAtRest(cfg)
	}
	err = c.admin(ctx, func(admin wire.AdminClient) error {
		resp, err := admin.RequestIntermediate(ctx, &wire.RequestIntermediateRequest{})
		der = resp.GetCsr()
		return called("ca csr", err)
	})
	return der, err
}

func (c *cli) caImportCommand() *cobra.Command {
	var rest atRest
	var root, key, rootKey string
	cmd := &cobra.Command{
		Use: "import [FILE]", Short: "Check and put in force an intermediate, or a root, signed elsewhere", Args: takes("[FILE]"),
		Long: `Import takes PEM certificates, the intermediate first, and puts them in force
after checks: that it is a CA for this trust domain and of the requested key,
that path lengths leave room, that nothing is expired, weak or shared, and that
all of it leads to the pinned root. Open connections live on.

A running server takes what was signed for its request. With --data-dir, for a
server that does not run, import also pins the root before the first start
(--root), takes an intermediate with a key from elsewhere (--key), or a root
with its key by KMS URI (--root and --root-key, without a FILE). The next start
records it and puts it in force.`,
		Example: `  aval ca import aval.pem
  aval ca import aval.pem --root root.pem --data-dir /var/lib/aval/server --trust-domain example.org
  aval ca import --root root.pem --root-key 'softkms:path=/etc/aval/root.key' --data-dir /var/lib/aval/server --trust-domain example.org`,
	}
	rest.flags(cmd)
	cmd.Flags().StringVar(&root, "root", "", "the root's certificate as PEM")
	cmd.Flags().StringVar(&key, "key", "", "the intermediate's key as PKCS#8 PEM of mode 0600, with --data-dir")
	cmd.Flags().StringVar(&rootKey, "root-key", "", "KMS URI of the root's key, with --root and --data-dir")
	c.adminFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, args []string) error {
		in, err := c.readImport(append(args, root), key, rootKey)
		if err != nil {
			return err
		}
		if rest.dataDir != "" {
			cfg, err := rest.config()
			if err != nil {
				return err
			}
			if err := server.ImportAtRest(ctx, cfg, in, time.Now()); err != nil {
				return err
			}
			fmt.Fprintln(c.out, "checked and staged; the next start puts it in force")
			return nil
		}
		if key != "" || rootKey != "" {
			return usage(errors.New("ca import: --key and --root-key are for a server that does not run: name its --data-dir"))
		}
		return c.admin(ctx, func(admin wire.AdminClient) error { return c.caImport(ctx, admin, in) })
	})
	return cmd
}

func (c *cli) caImport(ctx context.Context, admin wire.AdminClient, in server.Import) error {
	req := &wire.ImportIntermediateRequest{}
	for _, cert := range in.Certificates {
		req.Certificates = append(req.Certificates, cert.Raw)
	}
	resp, err := admin.ImportIntermediate(ctx, req)
	if err != nil {
		return called("ca import", err)
	}
	out := toAuthority(resp.GetIntermediate())
	return c.show(out, func() error {
		fmt.Fprintf(c.out, "in force: %s, ends %s, issued by %s\n", plain(out.Subject), ago(out.NotAfter, time.Now()), plain(out.Issuer))
		return nil
	})
}

// readImport reads the files of an import.
func (c *cli) readImport(files []string, key, rootKey string) (in server.Import, err error) {
	for _, path := range files {
		if path == "" {
			continue
		}
		certs, err := c.readCertificates(path)
		if err != nil {
			return in, err
		}
		in.Certificates = append(in.Certificates, certs...)
	}
	if len(in.Certificates) == 0 {
		return in, usage(errors.New("ca import: neither a file of certificates nor --root is named"))
	}
	in.RootKey = rootKey
	if key != "" {
		in.Key, err = readSigner(key)
	}
	return in, err
}

func (c *cli) readCertificates(path string) ([]*x509.Certificate, error) {
	var from io.Reader = c.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("ca import: %w", err)
		}
		defer f.Close()
		from = f
	}
	text, err := io.ReadAll(io.LimitReader(from, maxPEM))
	if err != nil {
		return nil, fmt.Errorf("ca import: %w", err)
	}
	// openssl prints what a certificate says before it.
	if i := strings.Index(string(text), "-----BEGIN"); i > 0 {
		text = text[i:]
	}
	certs, err := identity.DecodeCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("ca import: %s: %w", path, err)
	}
	return certs, nil
}

func readSigner(path string) (crypto.Signer, error) {
	if err := keys.CheckSecretFile(path); err != nil {
		return nil, fmt.Errorf("ca import: key: %w", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("ca import: key: %w", err)
	}
	key, err := identity.DecodeKey(text)
	if err != nil {
		return nil, fmt.Errorf("ca import: key %s: %w", path, err)
	}
	return key, nil
}
