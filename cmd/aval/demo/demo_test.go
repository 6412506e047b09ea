// This file plays the whole demo with the real binary: to its end, with one
// part killed, and with an interrupt.

package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// built is the binary that all tests of the file play with.
var built struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if built.dir != "" {
			os.RemoveAll(built.dir)
		}
		os.Exit(code)
	}))
}

// build gives the path of a freshly built aval.
func build(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("plays the whole demo")
	}
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "aval-test-"); built.err != nil {
			return
		}
		command := exec.Command("go", "build", "-o", built.dir, "github.com/aval-id/aval/cmd/aval")
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := command.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "aval")
}

// checkGone reports processes and files that the demo left behind.
func checkGone(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		t.Errorf("%s was left behind", e.Name())
	}
	for pid, line := range processes(t) {
		if strings.Contains(line, dir+"/") {
			t.Errorf("process %d was left behind: %s", pid, line)
		}
	}
}

// processes gives the command lines of all processes.
func processes(t *testing.T) map[int]string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	out := map[int]string{}
	for _, file := range files {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			t.Fatal(err)
		}
		line, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended meanwhile
		}
		out[pid] = string(bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
	}
	return out
}

func TestDemoTellsWhatItMeasured(t *testing.T) {
	aval, dir := build(t), openTempDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	command := exec.CommandContext(ctx, aval, "demo", "--once", "-o", "json")
	command.Env = append(os.Environ(), "TMPDIR="+dir)
	var out, story bytes.Buffer
	command.Stdout, command.Stderr = &out, &story
	if err := command.Run(); err != nil {
		t.Fatalf("%v\n%s", err, story.String())
	}
	checkGone(t, dir)
	t.Logf("%s", out.Bytes())

	decoder := json.NewDecoder(bytes.NewReader(out.Bytes()))
	var got struct {
		TrustDomain      string   `json:"trust_domain"`
		ServerReadyMS    *float64 `json:"server_ready_ms"`
		FirstSVIDMS      *float64 `json:"first_svid_ms"`
		RegisterToSVIDMS *float64 `json:"register_to_svid_ms"`
		FirstCallMS      *float64 `json:"first_call_ms"`
		Allowed          struct {
			ClientID   string `json:"client_id"`
			ServerID   string `json:"server_id"`
			TLSVersion string `json:"tls_version"`
			Group      string `json:"group"`
		} `json:"allowed"`
		Denied struct {
			ClientID string   `json:"client_id"`
			Reason   string   `json:"reason"`
			Policies []string `json:"policies"`
		} `json:"denied"`
		Plaintext struct{ Permissive, Strict string }   `json:"plaintext"`
		Rotation  struct{ Count, Requests, Failed int } `json:"rotation"`
		Audit     struct {
			Entries          int64  `json:"entries"`
			Verified         bool   `json:"verified"`
			TamperedAt       int64  `json:"tampered_at"`
			TamperDetectedAt *int64 `json:"tamper_detected_at"`
		} `json:"audit"`
	}
	if err := decoder.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		t.Errorf("more than one object on stdout: %s", out.Bytes())
	}
	id := func(name string) string { return "spiffe://" + got.TrustDomain + "/ns/shop/sa/" + name }
	for what, ms := range map[string]*float64{
		"server_ready_ms": got.ServerReadyMS, "first_svid_ms": got.FirstSVIDMS,
		"register_to_svid_ms": got.RegisterToSVIDMS, "first_call_ms": got.FirstCallMS,
	} {
		if ms == nil || *ms < 0 || *ms > 30_000 {
			t.Errorf("%s: %v", what, ms)
		}
	}
	for what, holds := range map[string]bool{
		"trust domain":       got.TrustDomain != "",
		"allowed IDs":        got.Allowed.ClientID == id("web") && got.Allowed.ServerID == id("api"),
		"allowed TLS":        got.Allowed.TLSVersion == "1.3" && got.Allowed.Group == "X25519MLKEM768",
		"denied":             got.Denied.ClientID == id("intruder") && got.Denied.Reason == "policy_denied",
		"policies consulted": slices.Equal(got.Denied.Policies, []string{"shop/api-callers", "shop/api-status-open"}),
		"plaintext":          got.Plaintext.Permissive == "allowed" && got.Plaintext.Strict == "refused",
		"rotation":           got.Rotation.Count >= 4 && got.Rotation.Requests >= 100 && got.Rotation.Failed == 0,
		"audit":              got.Audit.Entries > int64(got.Rotation.Requests)/2 && got.Audit.Verified,
		"tampering":          got.Audit.TamperDetectedAt != nil && *got.Audit.TamperDetectedAt == got.Audit.TamperedAt,
	} {
		if !holds {
			t.Errorf("%s is not as told: %s", what, out.Bytes())
		}
	}
	for _, step := range []string{"A trust domain", "A node joins", "web calls api", "intruder calls api", "The record is verified"} {
		if !strings.Contains(story.String(), step) {
			t.Errorf("the story on stderr has no step %q", step)
		}
	}
}

// until starts a demo and returns once its story holds the marker.
func until(t *testing.T, dir, marker string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	command := exec.Command(build(t), "demo")
	command.Env = append(os.Environ(), "TMPDIR="+dir)
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaint bytes.Buffer
	command.Stderr = &complaint
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(90*time.Second, func() { command.Process.Kill() })
	t.Cleanup(func() { late.Stop() })
	var story strings.Builder
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		story.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), marker) {
			return command, &complaint
		}
	}
	err = command.Wait()
	t.Fatalf("the demo ended before %q: %v\n%s%s", marker, err, story.String(), complaint.String())
	return nil, nil
}

func TestDeathOfOnePartEndsTheDemoAndIsExplained(t *testing.T) {
	build(t)
	dir := openTempDir(t)
	command, complaint := until(t, dir, "Certificates rotate")
	agent := 0
	for pid, line := range processes(t) {
		if strings.HasPrefix(line, dir) && strings.Contains(line, "/bin/aval agent ") {
			agent = pid
		}
	}
	if agent == 0 {
		t.Fatal("there is no agent to kill")
	}
	if err := syscall.Kill(agent, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	err := command.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("the demo ended with %v, not with status 1", err)
	}
	for _, want := range []string{"agent", strconv.Itoa(agent), "killed"} {
		if !strings.Contains(complaint.String(), want) {
			t.Errorf("%q does not name %q", complaint.String(), want)
		}
	}
	checkGone(t, dir)
}

func TestInterruptLeavesNothingBehind(t *testing.T) {
	build(t)
	dir := openTempDir(t)
	command, complaint := until(t, dir, "explain pid")
	if err := command.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := command.Wait(); err != nil {
		t.Errorf("Ctrl-C while it waits is no failure: %v\n%s", err, complaint.String())
	}
	checkGone(t, dir)
}

func TestInterruptedPlayLeavesNothingBehind(t *testing.T) {
	build(t)
	dir := openTempDir(t)
	command, _ := until(t, dir, "bin/web proxy")
	if err := command.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := command.Wait(); err == nil {
		t.Error("a play cut short ended with status 0")
	}
	checkGone(t, dir)
}

func TestKilledDemoLeavesNoProcess(t *testing.T) {
	build(t)
	dir := openTempDir(t)
	command, _ := until(t, dir, "web calls api")
	if err := command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := command.Wait(); err == nil {
		t.Error("a killed demo ended with status 0")
	}
	err := ready(t.Context(), 5*time.Second, "the processes to end", func(context.Context) error {
		for pid, line := range processes(t) {
			if strings.Contains(line, dir+"/") {
				return fmt.Errorf("process %d: %s", pid, line)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
