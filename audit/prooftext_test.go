// This file holds the tests of proofs as text and of consistency proofs.

package audit

import (
	"bytes"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func TestProofTextIsCheckedByTheKeyAlone(t *testing.T) {
	l := mustOpen(t, testConfig(memoryDir(t)))
	fill(t, l, 300)
	checkpointNow(t, l)
	for _, index := range []int64{0, 1, 255, 256, 299} {
		p, err := ProveInclusion(l.cfg.Dir, l.VerifierKey(), index)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseProof(p.Text())
		if err != nil {
			t.Fatal(err)
		}
		e, err := VerifyInclusion(back, l.VerifierKey())
		if err != nil || e.Index != index {
			t.Fatalf("entry %d: %+v, %v", index, e, err)
		}
		// The entry is what is proven, whatever the proof says it is.
		back.Entry = bytes.Replace(back.Entry, []byte("/web"), []byte("/wab"), 1)
		if _, err := VerifyInclusion(back, l.VerifierKey()); err == nil {
			t.Fatalf("a changed entry %d verified", index)
		}
	}
}

func TestConsistencyHoldsBetweenAllCheckpoints(t *testing.T) {
	l := mustOpen(t, testConfig(memoryDir(t)))
	notes := [][]byte{l.Checkpoint()}
	for _, n := range []int{1, 2, 250, 3, 1, 300} {
		fill(t, l, n)
		checkpointNow(t, l)
		notes = append(notes, l.Checkpoint())
	}
	for i, earlier := range notes {
		for _, later := range notes[i:] {
			old, err := CheckpointSize(earlier, l.VerifierKey())
			if err != nil {
				t.Fatal(err)
			}
			c, err := ProveConsistency(l.cfg.Dir, l.VerifierKey(), old, later)
			if err != nil {
				t.Fatal(err)
			}
			if c, err = ParseConsistency(c.Text()); err != nil {
				t.Fatal(err)
			}
			if _, err := VerifyConsistency(c, earlier, l.VerifierKey()); err != nil {
				t.Fatal(err)
			}
			if i+1 < len(notes) && !bytes.Equal(earlier, later) {
				if _, err := VerifyConsistency(c, notes[i+1], l.VerifierKey()); err == nil {
					t.Fatal("another checkpoint than the proof's passed")
				}
			}
		}
	}
}

func TestForkIsNotConsistent(t *testing.T) {
	ours, theirs := mustOpen(t, testConfig(memoryDir(t))), mustOpen(t, testConfig(memoryDir(t)))
	fill(t, ours, 20)
	mustRecord(t, theirs, testEvent(99))
	fill(t, theirs, 19)
	checkpointNow(t, theirs)
	earlier := theirs.Checkpoint()
	checkpointNow(t, ours)
	for range 2 {
		c, err := ProveConsistency(ours.cfg.Dir, ours.VerifierKey(), 20, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := VerifyConsistency(c, earlier, ours.VerifierKey()); err == nil {
			t.Fatal("a fork passed")
		}
		fill(t, ours, 30)
		checkpointNow(t, ours)
	}
}

func TestBadProofNamesItsLine(t *testing.T) {
	for text, want := range map[string]string{
		"": "no empty line",
		"c2sp.org/tlog-proof@v2\nextra e30=\nindex 0\n\nx":                                    "first line",
		proofMagic + "\nindex 0\n\nx":                                                         "line 2",
		proofMagic + "\nextra e30\nindex 0\n\nx":                                              "line 2",
		proofMagic + "\nextra e30=\n\nx":                                                      "line 3",
		proofMagic + "\nextra e30=\nindex 01\n\nx":                                            "line 3",
		proofMagic + "\nextra e30=\nindex -1\n\nx":                                            "line 3",
		proofMagic + "\nextra e30=\r\nindex 1\n\nx":                                           "carriage return",
		proofMagic + "\nextra e30=\nindex 1\nAAAA\n\nx":                                       "line 4",
		proofMagic + "\nextra e30=\nindex 1" + strings.Repeat("\nAAAA", 64) + "\n\nx":         "more than 63",
		proofMagic + "\nextra " + strings.Repeat("A", maxProofBytes) + "=\nindex 1\n\nxxxxxx": "more than",
	} {
		if _, err := ParseProof([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, not %q", text, err, want)
		}
	}
}

func FuzzProofText(f *testing.F) {
	s, err := newSigner(testOrigin, testKey(0))
	if err != nil {
		f.Fatal(err)
	}
	text, err := note.Sign(&note.Note{Text: checkpointText(testOrigin, 1, tlog.RecordHash(nil))}, s)
	if err != nil {
		f.Fatal(err)
	}
	p := Proof{Checkpoint: string(text), Index: 0, Entry: []byte(`{"a":1}`)}
	f.Add(p.Text())
	f.Add(Consistency{Old: 7, Checkpoint: string(text), Hashes: nil}.Text())
	f.Add([]byte("old 3\nAAAA\n\nx"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := ParseProof(b); err == nil {
			if back := p.Text(); !bytes.Equal(back, b) {
				t.Fatalf("%q was read from %q", back, b)
			}
			VerifyInclusion(p, s.text)
		}
		if c, err := ParseConsistency(b); err == nil {
			if back := c.Text(); !bytes.Equal(back, b) {
				t.Fatalf("%q was read from %q", back, b)
			}
			VerifyConsistency(c, text, s.text)
		}
	})
}
