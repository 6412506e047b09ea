// This file holds Source: construction, what it admits, and one fetch.

package jwks

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/aval-id/aval/identity/jwt"
	"github.com/aval-id/aval/identity/policy"
)

// Config says where keys may come from. The zero value admits nothing.
type Config struct {
	// Allow lists hosts, HOST[:PORT][=CIDR[+CIDR…]] between commas or blanks.
	// The port is 443 unless written. Addresses of private networks are asked
	// only where the host's CIDRs contain them, or the host is the address.
	Allow string
	// Dir is the directory that files have to be in or below; "" admits none.
	Dir string
	// CAFile holds the roots, in PEM, that hosts are verified by; "" means
	// the system's.
	CAFile string
}

// Source gets keys. It is safe for concurrent use.
type Source struct {
	hosts []host
	dir   string
	http  *http.Client
}

// New checks the configuration and reads the roots.
func New(cfg Config) (*Source, error) {
	hosts, err := parseAllow(cfg.Allow)
	if err != nil {
		return nil, fmt.Errorf("sources of keys: %w", err)
	}
	s := &Source{hosts: hosts}
	if cfg.Dir != "" {
		if s.dir, err = filepath.Abs(cfg.Dir); err != nil {
			return nil, fmt.Errorf("sources of keys: directory: %w", err)
		}
		if st, err := os.Stat(s.dir); err != nil || !st.IsDir() {
			return nil, fmt.Errorf("sources of keys: %s is not a directory that can be read", s.dir)
		}
	}
	var roots *x509.CertPool
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("sources of keys: roots: %w", err)
		}
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("sources of keys: roots: %s has no certificate in PEM", cfg.CAFile)
		}
	}
	s.http = s.client(roots)
	return s, nil
}

// client makes the only client: no proxy of the environment, no redirect, no
// compression that could grow, no connection kept.
func (s *Source) client(roots *x509.CertPool) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:            s.dial,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// errInward refuses an address that a name turned out to have.
var errInward = errors.New("address is not a public one, and not listed for the host")

// dial checks the address that is really connected to, after the name was
// looked up: a name may mean something else each time.
func (s *Source) dial(ctx context.Context, network, address string) (net.Conn, error) {
	name, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	h, ok := s.find(name, port)
	if !ok {
		return nil, errors.New("host is not listed")
	}
	d := net.Dialer{Timeout: 10 * time.Second, KeepAlive: -1, Control: func(_, actual string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(actual)
		if err != nil {
			return fmt.Errorf("address %q: %w", actual, err)
		}
		if !h.admits(at.Addr()) {
			return fmt.Errorf("%s: %w", at.Addr(), errInward)
		}
		return nil
	}}
	return d.DialContext(ctx, network, address)
}

func (s *Source) find(name, port string) (host, bool) {
	name, port = target(&url.URL{Host: net.JoinHostPort(name, port)})
	for _, h := range s.hosts {
		if h.name == name && h.port == port {
			return h, true
		}
	}
	return host{}, false
}

// Admits reports why keys are not fetched from a URI: because of what it is,
// or because nobody listed it.
func (s *Source) Admits(uri string) error {
	if err := policy.CheckKeysURI(uri); err != nil {
		return err
	}
	u, err := url.Parse(uri)
	if err != nil {
		return err
	}
	if u.Scheme == "file" {
		_, err := s.relative(u.Path)
		return err
	}
	name, port := target(u)
	if _, ok := s.find(name, port); !ok {
		return fmt.Errorf("is at a host that this server does not fetch keys from; start it with --jwks-allow %s to let it", flagFor(u))
	}
	return nil
}

func (s *Source) relative(path string) (string, error) {
	if s.dir == "" {
		return "", errors.New("is a file, and this server reads none; start it with --jwks-dir DIR to let it read those below DIR")
	}
	rel, err := filepath.Rel(s.dir, path)
	if err != nil || !filepath.IsLocal(rel) || rel == "." {
		return "", fmt.Errorf("is no file below %s, the --jwks-dir of this server", s.dir)
	}
	return rel, nil
}

// Dir returns the directory that changes of a file show in, and false for
// what is no file.
func (s *Source) Dir(uri string) (string, bool) {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "file" || s.Admits(uri) != nil {
		return "", false
	}
	return filepath.Dir(u.Path), true
}

// Fetch gets the keys that are at a URI now. It ends with ctx.
func (s *Source) Fetch(ctx context.Context, uri string) (*jwt.Keys, error) {
	if err := s.Admits(uri); err != nil {
		return nil, fmt.Errorf("the URI %w", err)
	}
	var data []byte
	var err error
	if strings.HasPrefix(uri, "file:") {
		data, err = s.read(uri)
	} else {
		data, err = s.get(ctx, uri)
	}
	if err != nil {
		return nil, err
	}
	return jwt.ReadKeys(data)
}

// read opens a file below the directory; no link leads out of it.
func (s *Source) read(uri string) ([]byte, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	rel, err := s.relative(u.Path)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return nil, fmt.Errorf("directory of keys: %w", err)
	}
	defer root.Close()
	// Neither a pipe nor a device may hold up the server.
	f, err := root.OpenFile(rel, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("file of keys: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.New("file of keys: is not a regular file")
	}
	return bounded(f)
}

// get asks a host. The answer has to come by itself, whole, and be small.
func (s *Source) get(ctx context.Context, uri string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	req.Header.Set("User-Agent", "aval")
	res, err := s.http.Do(req)
	if err != nil {
		// The error of net/http repeats the URI, which may hold a query.
		if outer, ok := errors.AsType[*url.Error](err); ok {
			err = outer.Err
		}
		return nil, fmt.Errorf("ask the host: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode/100 == 3 {
		return nil, fmt.Errorf("the host answers %d, a redirect, which is not followed: name the URI that it leads to", res.StatusCode)
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the host answers %d", res.StatusCode)
	}
	data, err := bounded(res.Body)
	if ctx.Err() != nil {
		err = ctx.Err() // whatever came is not to be trusted to be all
	}
	if err != nil {
		return nil, fmt.Errorf("answer of the host: %w", err)
	}
	return data, nil
}

func bounded(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, jwt.MaxKeySetBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > jwt.MaxKeySetBytes {
		return nil, fmt.Errorf("is larger than %d bytes", jwt.MaxKeySetBytes)
	}
	return data, nil
}
