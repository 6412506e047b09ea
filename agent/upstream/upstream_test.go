// This file holds the tests of the pure parts of the stream. The stream is
// tested with a whole agent, one folder up.

package upstream

import (
	"testing"
	"time"

	"github.com/aval-id/aval/identity/wire"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEveryRequestHasExactlyOneAnswer(t *testing.T) {
	answer := func(numbers ...uint64) *wire.IssueResults {
		r := &wire.IssueResults{}
		for _, n := range numbers {
			r.Results = append(r.Results, &wire.IssueResult{Request: n, Chain: [][]byte{{byte(n)}}})
		}
		return r
	}
	out, err := toResults(answer(2, 0, 1), 3)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range out {
		if r.Err != nil || r.Chain[0][0] != byte(i) {
			t.Fatalf("answer %d: %v", i, r)
		}
	}
	for name, bad := range map[string]*wire.IssueResults{"missing": answer(0, 1), "twice": answer(0, 1, 1), "unknown": answer(0, 1, 3), "none": nil} {
		if _, err := toResults(bad, 3); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestARefusalIsARefusalWhateverElseItHolds(t *testing.T) {
	for name, r := range map[string]*wire.IssueResult{
		"error":            {Error: "no", Chain: [][]byte{{1}}},
		"code":             {Code: uint32(codes.PermissionDenied), Chain: [][]byte{{1}}},
		"neither nor cert": {},
	} {
		out, err := toResults(&wire.IssueResults{Results: []*wire.IssueResult{r}}, 1)
		if err != nil || out[0].Err == nil || out[0].Chain != nil {
			t.Errorf("%s: %v %v", name, out, err)
		}
	}
	out, err := toResults(&wire.IssueResults{Results: []*wire.IssueResult{{Error: "full", Code: uint32(codes.ResourceExhausted), RetryAfter: 1500}}}, 1)
	if err != nil || status.Code(out[0].Err) != codes.ResourceExhausted || out[0].RetryAfter != 1500*time.Millisecond {
		t.Fatal(out, err)
	}
}
