// This file holds the foreign clients: go-spiffe of the released module,
// openssl and curl.

package e2e

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/aval-id/aval/cmd/aval/avaltest"
)

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	avaltest.Must(t, err)
	return path
}

type svids = *workload.X509SVIDResponse

func hasSVID(m svids) bool { return len(m.GetSvids()) > 0 }

func TestCurlAndOpenSSLAcceptAServiceWithAnSVID(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	for _, tool := range []string{"curl", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	f := avaltest.New(t)
	f.StartServer()
	f.StartAgent("n1")
	f.Apply("apiVersion: aval.dev/v1alpha1\nkind: Registration\nmetadata: {name: api, namespace: shop}\n" +
		"spec: {id: /ns/shop/sa/api, workload: {unix.path: " + self(t) + "}, dnsNames: [api.shop]}\n")
	f.Apply("apiVersion: aval.dev/v1alpha1\nkind: Registration\nmetadata: {name: web, namespace: shop}\n" +
		"spec: {id: /ns/shop/sa/web, workload: {unix.path: " + f.Binary + "}}\n")

	// The service is this test, by go-spiffe.
	ctx, cancel := context.WithTimeout(t.Context(), avaltest.Patience)
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+f.Socket)))
	avaltest.Must(t, err)
	defer source.Close()
	svid, err := source.GetX509SVID()
	avaltest.Must(t, err)
	if svid.ID.String() != "spiffe://example.org/ns/shop/sa/api" || time.Until(svid.Certificates[0].NotAfter) > 4*time.Hour {
		t.Fatalf("SVID of %s until %s", svid.ID, svid.Certificates[0].NotAfter)
	}
	addr := avaltest.FreeAddress(t)
	service := &http.Server{Addr: addr, TLSConfig: tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/web"))),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Write([]byte("hello " + r.TLS.PeerCertificates[0].URIs[0].String()))
		})}
	go service.ListenAndServeTLS("", "")
	defer service.Close()
	f.Reachable(addr)

	// The client is curl, with what `svid fetch` wrote.
	dir := filepath.Join(f.Dir, "web")
	f.Aval("svid", "fetch", "--socket", f.Socket, "--write", dir, "--timeout", "5s")
	cert, key, bundle := filepath.Join(dir, "svid.0.pem"), filepath.Join(dir, "svid.0.key"), filepath.Join(dir, "bundle.0.pem")
	if st, err := os.Stat(key); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("key file: %v %v", st.Mode(), err)
	}
	_, port, _ := strings.Cut(addr, ":")
	out, err := exec.Command("curl", "-sS", "--fail", "--tlsv1.3", "--cert", cert, "--key", key, "--cacert", bundle,
		"--resolve", "api.shop:"+port+":127.0.0.1", "https://api.shop:"+port+"/").CombinedOutput()
	if err != nil || string(out) != "hello spiffe://example.org/ns/shop/sa/web" {
		t.Fatalf("curl: %v %s", err, out)
	}
	out, err = exec.Command("openssl", "verify", "-x509_strict", "-CAfile", bundle, "-untrusted", cert, cert).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "OK") {
		t.Fatalf("openssl verify: %v %s", err, out)
	}
	cmd := exec.Command("openssl", "s_client", "-connect", addr, "-cert", cert, "-cert_chain", cert, "-key", key, "-CAfile", bundle, "-verify_return_error", "-brief")
	cmd.Stdin = strings.NewReader("")
	out, err = cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Verification: OK") || !strings.Contains(string(out), "TLSv1.3") {
		t.Fatalf("openssl s_client: %v %s", err, out)
	}
}

func TestADeletedRegistrationEndsTheOpenStream(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	f := avaltest.New(t)
	f.StartServer()
	f.StartAgent("n1")
	messages := f.Stream()
	f.Apply(string(avaltest.Registration("shop", "a")))
	avaltest.Until(t, "a's SVID", messages, hasSVID)
	f.Apply(string(avaltest.Registration("shop", "b")))
	avaltest.Until(t, "both SVIDs in one message", messages, func(m *workload.X509SVIDResponse) bool { return len(m.GetSvids()) == 2 })
	f.Aval("delete", "registration", "a", "-n", "shop")
	avaltest.Until(t, "b's SVID alone", messages, func(m *workload.X509SVIDResponse) bool {
		return len(m.GetSvids()) == 1 && strings.HasSuffix(avaltest.IDs(m)[0], "/b")
	})
	f.Aval("delete", "registrations", "b", "-n", "shop")
	if _, _, code := f.Run(nil, "svid", "fetch", "--socket", f.Socket, "--timeout", "5s"); code != 5 {
		t.Fatalf("svid fetch without a registration: exit %d, want 5", code)
	}
}

func TestAnEvictedNodeGetsNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	f := avaltest.New(t)
	f.StartServer()
	f.Apply(string(avaltest.Registration("shop", "a")))
	token := f.NewToken("n1")
	f.StartAgentWith("n1", token)
	messages := f.Stream()
	avaltest.Until(t, "a's SVID", messages, hasSVID)
	out := string(f.Aval("node", "evict", "n1"))
	if !strings.Contains(out, "spiffe://example.org/ns/shop/sa/a") {
		t.Errorf("the command does not say which SVIDs live on:\n%s", out)
	}
	before := len(f.Entries("issuance"))
	f.Apply(string(avaltest.Registration("shop", "b")))
	f.Agent.Kill()
	f.StartAgentWith("n1", token)
	select {
	case <-f.Agent.Done():
	case <-time.After(2 * time.Second):
	}
	if after := len(f.Entries("issuance")); after != before {
		t.Fatalf("%d issuances after the eviction", after-before)
	}
}
