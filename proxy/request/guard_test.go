// This file holds the tests of the guard: what it refuses, and that it divides
// a stream as net/http does.

package request

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

// refusedStreams are streams that two readers may divide or read differently.
var refusedStreams = map[string]string{
	"length and chunked":       "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"chunked and length":       "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
	"two lengths":              "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
	"two equal lengths":        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
	"list of lengths":          "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nabcd",
	"signed length":            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd",
	"negative length":          "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -4\r\n\r\nabcd",
	"hexadecimal length":       "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\nabcd",
	"empty length":             "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
	"xchunked":                 "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
	"chunked twice":            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"identity, chunked":        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
	"gzip, chunked":            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
	"quoted chunked":           "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
	"chunked with tab inside":  "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chu\tnked\r\n\r\n0\r\n\r\n",
	"chunked in HTTP/1.0":      "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"blank before colon":       "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
	"folded field":             "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
	"field that is folded":     "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n\tb\r\n\r\n",
	"first field folded":       "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
	"vertical tab in name":     "POST / HTTP/1.1\r\nHost: a\r\n\vTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"NUL in value":             "GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
	"NUL in target":            "GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
	"NUL in name":              "GET / HTTP/1.1\r\nHost: a\r\nX\x00: b\r\n\r\n",
	"CR in value":              "GET / HTTP/1.1\r\nHost: a\r\nX: a\rY: b\r\n\r\n",
	"bare LF":                  "GET / HTTP/1.1\nHost: a\n\n",
	"bare LF in header":        "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
	"bare LF at the end":       "GET / HTTP/1.1\r\nHost: a\r\n\n",
	"two hosts":                "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
	"no name":                  "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
	"no colon":                 "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
	"absolute-form":            "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
	"authority-form":           "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
	"CONNECT of a path":        "CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n",
	"two blanks":               "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
	"blank in target":          "GET / x HTTP/1.1\r\nHost: a\r\n\r\n",
	"tab in request line":      "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
	"lower-case method":        "get / HTTP/1.1\r\nHost: a\r\n\r\n",
	"mixed method":             "GeT / HTTP/1.1\r\nHost: a\r\n\r\n",
	"no method":                " / HTTP/1.1\r\nHost: a\r\n\r\n",
	"method with a colon":      "GET: / HTTP/1.1\r\nHost: a\r\n\r\n",
	"HTTP/0.9":                 "GET /\r\n",
	"HTTP/1.2":                 "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
	"HTTP/1.1 and a blank":     "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
	"empty line first":         "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"chunk size signed":        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n",
	"chunk size prefixed":      "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
	"chunk size overflows":     "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\na\r\n0\r\n\r\n",
	"chunk size and a blank":   "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n",
	"chunk longer than said":   "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
	"chunk ends in LF":         "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\n0\r\n\r\n",
	"chunk extension with LF":  "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a\na\r\n0\r\n\r\n",
	"length in the trailer":    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
	"preface of another kind":  "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
	"preface after a request":  "GET / HTTP/1.1\r\nHost: a\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	"the second of two":        "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
	"length beyond all bounds": "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999999999999\r\n\r\n",
}

func TestStreamsThatTwoReadersDivideDifferentlyAreRefused(t *testing.T) {
	for name, stream := range refusedStreams {
		for _, piece := range []int{1, 3, len(stream)} {
			var g guard
			var err error
			for rest := []byte(stream); len(rest) > 0 && err == nil; rest = rest[min(piece, len(rest)):] {
				_, err = g.pass(rest[:min(piece, len(rest))])
			}
			if err == nil {
				t.Errorf("%s, in pieces of %d: passed", name, piece)
			}
		}
	}
}

func TestOrdinaryStreamsPass(t *testing.T) {
	for name, stream := range map[string]string{
		"get":         "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"pipelined":   "GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST /x?y HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
		"chunked":     "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nTrailer: X\r\n\r\n3;n=v\r\nabc\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"options":     "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
		"http/1.0":    "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
		"preface":     "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
		"websocket":   "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00\n",
		"odd methods": "M-SEARCH / HTTP/1.1\r\nHost: a\r\n\r\nVERSION_CONTROL / HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		for _, piece := range []int{1, 2, 7, len(stream)} {
			var g guard
			for rest := []byte(stream); len(rest) > 0; rest = rest[min(piece, len(rest)):] {
				if n, err := g.pass(rest[:min(piece, len(rest))]); err != nil || n != min(piece, len(rest)) {
					t.Fatalf("%s, in pieces of %d: %d, %v", name, piece, n, err)
				}
			}
		}
	}
}

// begins counts the requests of a stream by the guard.
func begins(stream []byte) (requests int, whole bool) {
	var g guard
	for i := range stream {
		before := g.place
		if _, err := g.pass(stream[i : i+1]); err != nil || g.place == beyond {
			return 0, false
		}
		if before == atRequestLine && g.place == atField {
			requests++
		}
	}
	return requests, g.place == atRequestLine && len(g.line) == 0
}

// FuzzGuardDividesLikeNetHTTP looks for a stream that the guard lets pass and
// in which net/http sees other requests.
func FuzzGuardDividesLikeNetHTTP(f *testing.F) {
	for _, s := range refusedStreams {
		f.Add([]byte(s))
	}
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST /x?y HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;n=v\r\nabc\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		want, whole := begins(stream)
		if !whole {
			return
		}
		r := bufio.NewReader(bytes.NewReader(stream))
		got := 0
		for {
			req, err := http.ReadRequest(r)
			if err == io.EOF {
				break
			}
			if err != nil {
				return // refused by net/http, which ends the connection
			}
			got++
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
		}
		if got != want {
			t.Fatalf("net/http sees %d requests, the guard %d", got, want)
		}
	})
}

func TestFirstBytesTellHTTP(t *testing.T) {
	for s, want := range map[string]Likeness{
		"": Undecided, "GE": Undecided, "GET ": Alike, "PRI * HTTP/2.0": Alike, "M-SEARCH * ": Alike,
		"get /": Alike, "get http": Alike, "G.t /": Alike, "\r\n\nGET ": Alike, "\r\n": Undecided, "get ": Undecided, "get ht": Undecided,
		"get key\r\n": Unlike, "\r\n\r\n\x00\r\nQUIT\n": Unlike,
		" GET": Unlike, "\x16\x03\x01": Unlike, "SSH-2.0-x\r\n": Unlike, strings.Repeat("A", 40): Unlike, "-A ": Undecided, "-A b": Unlike,
	} {
		if got := Like([]byte(s)); got != want {
			t.Errorf("%q: %d, want %d", s, got, want)
		}
	}
}
