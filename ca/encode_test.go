// This file holds the test of the leaf encoding against crypto/x509.

package ca

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"
)

func TestEncodedLeafIsWhatTheStandardLibraryMakes(t *testing.T) {
	now := time.Now()
	h := newHouse(t, now, 900*time.Hour)
	for _, names := range [][]string{nil, {"web.shop", "*.web.shop"}} {
		for _, at := range []time.Time{now, time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(2051, 1, 1, 0, 0, 0, 0, time.FixedZone("x", 3600))} {
			d, err := h.Draft(now, workload(t, 0, names...), proven(t, newKey(t)))
			if err != nil {
				t.Fatal(err)
			}
			d.template.NotAfter = at
			want, err := x509.CreateCertificate(rand.Reader, &d.template, h.cert, d.pub, h.key)
			if err != nil {
				t.Fatal(err)
			}
			got, err := h.create(d)
			if err != nil {
				t.Fatal(err)
			}
			parse := func(der []byte) *x509.Certificate {
				c, err := x509.ParseCertificate(der)
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			a, b := parse(got), parse(want)
			if !bytes.Equal(a.RawTBSCertificate, b.RawTBSCertificate) {
				t.Fatalf("encoded %x\nwant    %x", a.RawTBSCertificate, b.RawTBSCertificate)
			}
			if err := a.CheckSignatureFrom(h.cert); err != nil {
				t.Fatal(err)
			}
		}
	}
}
