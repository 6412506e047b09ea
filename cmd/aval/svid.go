// This file holds svid fetch: identities of the calling process, as files.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/aval-id/aval/identity"
	"github.com/aval-id/aval/rotation"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func (c *cli) svidCommand() *cobra.Command {
	return group("svid", "Identities of the calling process", c.svidFetchCommand())
}

func (c *cli) svidFetchCommand() *cobra.Command {
	var dir string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "fetch",
		Short: "Fetch the X.509-SVIDs that this process is entitled to",
		Long: `Fetch asks the agent for the identities of the calling process and shows
them. With --write it stores each as svid.N.pem (leaf first), svid.N.key
(PKCS#8, mode 0600) and bundle.N.pem, N from 0. Files are replaced whole.`,
		Example: `  aval svid fetch
  aval svid fetch --socket /run/aval/agent/workload.sock --write /run/web/tls --timeout 30s`,
		Args: takes(),
	}
	cmd.Flags().StringVar(&dir, "write", "", "directory to store the identities in; made with mode 0700 if absent")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "how long to wait for an identity")
	c.socketFlag(cmd)
	c.outputFlag(cmd, formTable, formJSON, formYAML)
	cmd.RunE = act(func(ctx context.Context, _ []string) error {
		got, err := c.fetch(ctx, timeout)
		if err != nil {
			return err
		}
		return c.keepSVIDs(got, dir)
	})
	return cmd
}

// fetch asks until there is an identity or the time is over. The answer
// "none" is asked again too: a registration may be on its way.
func (c *cli) fetch(ctx context.Context, timeout time.Duration) (*workloadapi.X509Context, error) {
	path, err := socketPath(c.agentSocket)
	if err != nil {
		return nil, err
	}
	probe, err := dialSocket(ctx, path, "agent", "name its socket with --socket or SPIFFE_ENDPOINT_SOCKET")
	if err != nil {
		return nil, err
	}
	probe.Close()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+path))
	if err != nil {
		return nil, fmt.Errorf("svid fetch: %w", err)
	}
	defer client.Close()
	var last error
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		got, err := client.FetchX509Context(ctx)
		if err == nil {
			return got, nil
		}
		// That the time is over says less than the answer before it.
		if last == nil || ctx.Err() == nil && status.Code(err) != codes.DeadlineExceeded {
			last = err
		}
		if !retryable(err) || !rotation.Pause(ctx, wait) {
			return nil, fetchFailure(last)
		}
	}
}

func retryable(err error) bool {
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.PermissionDenied
}

func fetchFailure(err error) error {
	st := status.Convert(err)
	switch st.Code() {
	case codes.PermissionDenied:
		return hinted(fmt.Errorf("svid fetch: no identity: %s", st.Message()), exitDenied,
			"aval explain pid PID says what is missing, of a process that is running; of this shell: aval explain pid $$")
	case codes.Unavailable, codes.DeadlineExceeded:
		return hinted(fmt.Errorf("svid fetch: the agent has no answer: %s", st.Message()), exitUnreachable,
			"has the agent reached its server? aval check shows it")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return hinted(errors.New("svid fetch: the agent gave no answer in time"), exitUnreachable, "raise --timeout")
	}
	return called("svid fetch", err)
}

// fetched is one identity in JSON and YAML.
type fetched struct {
	SPIFFEID string    `json:"spiffe_id"`
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"not_after"`
	Hint     string    `json:"hint,omitempty"`
	DNSNames []string  `json:"dns_names,omitempty"`
	Files    *files    `json:"files,omitempty"`
}

type files struct {
	Chain  string `json:"chain"`
	Key    string `json:"key"`
	Bundle string `json:"bundle"`
}

func (c *cli) keepSVIDs(got *workloadapi.X509Context, dir string) error {
	if dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("svid fetch: %w", err)
		}
	}
	var out []fetched
	for i, svid := range got.SVIDs {
		leaf := svid.Certificates[0]
		f := fetched{SPIFFEID: svid.ID.String(), Serial: identity.Serial(leaf), NotAfter: leaf.NotAfter, Hint: svid.Hint, DNSNames: leaf.DNSNames}
		if dir != "" {
			key, err := identity.EncodeKey(svid.PrivateKey)
			if err != nil {
				return fmt.Errorf("svid fetch: %w", err)
			}
			bundle, err := got.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
			if err != nil {
				return fmt.Errorf("svid fetch: %w", err)
			}
			f.Files = &files{
				Chain:  filepath.Join(dir, fmt.Sprintf("svid.%d.pem", i)),
				Key:    filepath.Join(dir, fmt.Sprintf("svid.%d.key", i)),
				Bundle: filepath.Join(dir, fmt.Sprintf("bundle.%d.pem", i)),
			}
			if err := writeSVID(*f.Files, identity.EncodeCertificates(svid.Certificates), key, identity.EncodeCertificates(bundle.X509Authorities())); err != nil {
				return fmt.Errorf("svid fetch: %w", err)
			}
		}
		out = append(out, f)
	}
	return c.show(items(out), func() error {
		t := table{heading: []string{"SPIFFE ID", "SERIAL", "LIVES UNTIL", "ENDS"}}
		for _, f := range out {
			t.add(f.SPIFFEID, f.Serial, f.NotAfter.Format(time.RFC3339), ago(f.NotAfter, time.Now()))
		}
		if err := t.print(c.out); err != nil {
			return err
		}
		if dir != "" {
			fmt.Fprintf(c.err, "stored in %s\n", dir)
		}
		return nil
	})
}

func writeSVID(f files, chain, key, bundle []byte) error {
	if err := replaceFile(f.Key, key, 0o600); err != nil {
		return err
	}
	if err := replaceFile(f.Chain, chain, 0o644); err != nil {
		return err
	}
	return replaceFile(f.Bundle, bundle, 0o644)
}

// replaceFile puts data in place of path at once: a reader finds the old
// content or the new, never a part, and never a wider mode. It doesn't wait
// for the disk, since after a power cut there are new identities to fetch.
func replaceFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && mode != 0o600 {
		err = f.Chmod(mode)
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
