// This file holds the naming of a local plaintext client by a proxy that may
// not see other users' processes, with the agent's help.

package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/aval-id/aval/cmd/aval/avaltest"
)

func TestAClientOfAnotherUserIsNamedWithTheAgentsHelp(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, to be two users")
	}
	f := avaltest.New(t)
	f.StartServer()
	f.StartAgent("n1")
	in := avaltest.FreeAddress(t)
	f.Apply("apiVersion: aval.dev/v1alpha1\nkind: Registration\nmetadata: {name: api, namespace: shop, labels: {app: api}}\n" +
		"spec: {id: /ns/shop/sa/api, workload: {unix.uid: 65534}}\n")
	file := filepath.Join(f.Dir, "api.yaml")
	avaltest.Must(t, os.WriteFile(file, fmt.Appendf(nil, "agent: unix://%s\ninbound: [{listen: %q, forward: %q, port: 8080}]\n", f.Socket, in, echoService(t)), 0o644))
	f.StartAs(f.Copy("api"), &syscall.Credential{Uid: 65534, Gid: 65534}, "proxy", "--config", file)
	f.Reachable(in)
	self, err := os.Executable()
	avaltest.Must(t, err)
	f.Await("a client is named by its executable", func() bool {
		c, err := net.Dial("tcp", in) // stays open
		avaltest.Must(t, err)
		t.Cleanup(func() { c.Close() })
		if _, err := c.Write([]byte("hello\n")); err != nil {
			return false
		}
		c.Read(make([]byte, 1))
		for _, e := range f.Entries("connection") {
			if text, _ := e["client_process"].(string); strings.HasPrefix(text, "uid=0 ") && strings.HasSuffix(text, "exe="+self) {
				return true
			}
		}
		return false
	})
}
