// This file holds the tests of what is written: events, frames, checkpoints,
// keys and the schema.

package audit

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// fullEvent sets every field, so that a field the encoder forgot shows.
func fullEvent(t testing.TB) Event {
	var e Event
	v := reflect.ValueOf(&e).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Interface().(type) {
		case time.Time:
			f.Set(reflect.ValueOf(testTime.Add(time.Duration(i) * time.Minute)))
		case []string:
			f.Set(reflect.ValueOf([]string{"one", "t\"wo", ""}))
		case *int:
			f.Set(reflect.ValueOf(new(0)))
		case bool:
			f.SetBool(true)
		default:
			switch f.Kind() {
			case reflect.String:
				f.SetString("value of " + v.Type().Field(i).Name)
			case reflect.Uint64, reflect.Uint16:
				f.SetUint(uint64(i + 1))
			case reflect.Int64:
				f.SetInt(int64(-i))
			default:
				t.Fatalf("field %s has a type that this test does not know", v.Type().Field(i).Name)
			}
		}
	}
	return e
}

func TestATimeThatUTCCannotHoldIsRefused(t *testing.T) {
	l := mustOpen(t, testConfig(memoryDir(t)))
	for _, field := range []string{"time", "not_before", "not_after", "first_time"} {
		for _, at := range []string{"9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00", "0000-06-01T00:00:00Z"} {
			times := map[string]string{"time": testTime.Format(time.RFC3339), "kind": string(KindLoss)}
			times[field] = at
			text, err := json.Marshal(times)
			if err != nil {
				t.Fatal(err)
			}
			var e Event
			if err := json.Unmarshal(text, &e); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Record(t.Context(), e); err == nil {
				t.Errorf("%s of %s was taken", field, at)
			}
		}
	}
	if err := l.Read(0, func(Entry) error { return nil }); err != nil {
		t.Fatal(err)
	}
}

func TestEncoderWritesWhatEncodingJSONWrites(t *testing.T) {
	for _, e := range []Event{{}, {Time: testTime, Kind: KindLoss}, fullEvent(t)} {
		entry := Entry{Index: 42, Event: e}
		want, err := json.Marshal(entry)
		if err != nil {
			t.Fatal(err)
		}
		if got := entry.AppendJSON(nil); !bytes.Equal(got, want) {
			t.Errorf("encoder:       %s\nencoding/json: %s", got, want)
		}
	}
}

func FuzzEventJSON(f *testing.F) {
	full, _ := json.Marshal(fullEvent(f))
	f.Add(full)
	f.Add([]byte(`{"time":"2026-01-01T00:00:00Z","kind":"connection","reason":"allowed","rule":0,"sni":"\u2028<&>\ud800"}`))
	f.Add([]byte(`{"time":"2026-01-01T00:00:00.120+01:00","kind":"issuance","detail":"\u007f\u0000é"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var e Event
		if json.Unmarshal(text, &e) != nil {
			return
		}
		for _, at := range []*time.Time{&e.Time, &e.NotBefore, &e.NotAfter, &e.FirstTime} {
			*at = at.UTC()
			if y := at.Year(); y < 0 || y > 9999 {
				return
			}
		}
		want, err := json.Marshal(e)
		if err != nil {
			return
		}
		got := appendEvent(nil, &e)
		if !bytes.Equal(got, want) {
			t.Fatalf("encoder:       %s\nencoding/json: %s", got, want)
		}
		back, err := decodeEntry(7, got)
		if err != nil || !bytes.Equal(appendEvent(nil, &back.Event), got) {
			t.Fatalf("round trip of %s: %v", got, err)
		}
	})
}

func FuzzFrame(f *testing.F) {
	f.Add(appendFrame(nil, 3, 1, chainHash{1}, []byte(`{"a":1}`)))
	f.Add(appendFrame(nil, 0, 0, chainHash{}, nil))
	f.Add(appendSegmentHead(nil, 9, chainHash{2}))
	f.Add([]byte{0xa5, 0xd1, 0xf9, 0xe7})
	f.Fuzz(func(t *testing.T, b []byte) {
		if fr, err := parseFrame(b); err == nil {
			if back := appendFrame(nil, fr.group, fr.left, fr.chain, fr.payload); !bytes.Equal(back, b[:fr.size()]) {
				t.Fatalf("frame %x was read from %x", back, b)
			}
		}
		if first, chain, err := parseSegmentHead(b); err == nil {
			if back := appendSegmentHead(nil, first, chain); !bytes.Equal(back, b[:segmentHead]) {
				t.Fatalf("header %x was read from %x", back, b)
			}
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	s, err := newSigner(testOrigin, testKey(0))
	if err != nil {
		f.Fatal(err)
	}
	l := &Log{signer: s}
	h, err := l.sign(5, tlog.RecordHash(nil))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(h.note)
	f.Add([]byte("example.org/authority/one\n5\n"))
	f.Add(bytes.Replace(h.note, []byte("\n5\n"), []byte("\n05\n"), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseCheckpoint(b, s.verifier)
		if err == nil && (got.size != h.size || got.root != h.root) {
			t.Fatalf("accepted a checkpoint that was never signed: %q", b)
		}
	})
}

func FuzzKey(f *testing.F) {
	path := filepath.Join(f.TempDir(), "key")
	if _, err := LoadOrCreateKey(path); err != nil {
		f.Fatal(err)
	}
	text, _ := os.ReadFile(path)
	f.Add(text)
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if key, err := parseKey(b); err == nil && len(key) != 64 {
			t.Fatalf("a key of %d bytes", len(key))
		}
	})
}

func TestCheckpointWithOtherTextIsRefused(t *testing.T) {
	s, _ := newSigner(testOrigin, testKey(0))
	root := tlog.RecordHash(nil).String()
	for _, text := range []string{
		testOrigin + "\n5\n" + root + "\nmore\n",
		testOrigin + "\n05\n" + root + "\n",
		testOrigin + "\n-5\n" + root + "\n",
		testOrigin + "\n5\nAAAA\n",
		"example.org/other\n5\n" + root + "\n",
		testOrigin + "\n\n5\n" + root + "\n",
	} {
		signed := signText(t, s, text)
		if _, err := parseCheckpoint(signed, s.verifier); err == nil {
			t.Errorf("accepted %q", text)
		}
	}
	good := checkpointText(testOrigin, 5, tlog.RecordHash(nil))
	if _, err := parseCheckpoint(signText(t, s, good), s.verifier); err != nil {
		t.Error(err)
	}
}

func TestKeyOpenToOthersIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.pem")
	made, err := LoadOrCreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", fi.Mode(), err)
	}
	found, err := LoadOrCreateKey(path)
	if err != nil || !made.Equal(found) {
		t.Fatalf("second load: %v", err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620} {
		os.Chmod(path, mode)
		if _, err := LoadOrCreateKey(path); err == nil {
			t.Errorf("mode %o was accepted", mode)
		}
	}
}

func TestWriteFileReplacesWholly(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	for _, text := range []string{"one", "two, longer", ""} {
		if err := WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		fi, _ := os.Stat(path)
		if err != nil || string(got) != text || fi.Mode().Perm() != 0o640 {
			t.Fatalf("%q, %v, %v", got, err, fi.Mode())
		}
	}
	if err := WriteFile(filepath.Join(dir, "missing", "state"), nil, 0o600); err == nil {
		t.Error("wrote into a directory that does not exist")
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("left %v behind", names)
	}
}

func TestSchemaNamesEveryFieldAndList(t *testing.T) {
	var s struct {
		Required             []string
		AdditionalProperties *bool
		Properties           map[string]struct {
			Type   string
			Format string
			Enum   []string
		}
		Then struct {
			Properties map[string]struct{ Enum []string }
		}
	}
	if err := json.Unmarshal(Schema(), &s); err != nil {
		t.Fatal(err)
	}
	if s.AdditionalProperties == nil || *s.AdditionalProperties || !slices.Equal(s.Required, []string{"index", "time", "kind"}) {
		t.Error("the schema is open, or requires other fields")
	}
	delete(s.Properties, "index")
	e := reflect.TypeFor[Event]()
	for f := range e.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		p, ok := s.Properties[name]
		if !ok {
			t.Errorf("field %s is not in the schema", name)
		}
		want, format := "", ""
		switch {
		case f.Type == reflect.TypeFor[time.Time]():
			want, format = "string", "date-time"
		case f.Type.Kind() == reflect.String:
			want = "string"
		case f.Type.Kind() == reflect.Bool:
			want = "boolean"
		case f.Type.Kind() == reflect.Slice:
			want = "array"
		default:
			want = "integer"
		}
		if p.Type != want || p.Format != format {
			t.Errorf("field %s is %s %s in the schema, not %s %s", name, p.Type, p.Format, want, format)
		}
		delete(s.Properties, name)
		switch name {
		case "kind":
			sameList(t, name, p.Enum, Kinds())
		case "verdict":
			sameList(t, name, p.Enum, Verdicts())
		case "mode":
			sameList(t, name, p.Enum, Modes())
		}
	}
	for name := range s.Properties {
		t.Errorf("the schema has a field %s that no event has", name)
	}
	sameList(t, "reason", s.Then.Properties["reason"].Enum, Reasons())
}

func sameList[T ~string](t *testing.T, field string, got []string, want []T) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: the schema lists %d values of %d", field, len(got), len(want))
	}
	for _, w := range want {
		if !slices.Contains(got, string(w)) {
			t.Errorf("%s: %q is not in the schema", field, w)
		}
	}
}
