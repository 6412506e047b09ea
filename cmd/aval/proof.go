// This file holds the proof of one entry, made without the server.

package main

import (
	"encoding/json"
	"fmt"

	"github.com/aval-id/aval/audit"
)

// provenEntry is an entry with what proves that it is in the record. The
// fields that audit.Proof needs keep their names.
type provenEntry struct {
	Log         string `json:"log"`
	VerifierKey string `json:"verifier_key"`
	audit.Proof
}

// proveEntry prints an entry of a directory, with its proof. The proof is
// checked before it is printed.
func (c *cli) proveEntry(t logTarget, index int64) error {
	key, err := verifierKey(t)
	if err != nil {
		return err
	}
	proof, err := audit.ProveInclusion(t.dir, key, index)
	if err != nil {
		return hinted(fmt.Errorf("audit show: %w", err), exitNegative,
			"aval audit verify says whether the log is whole; a new entry is under the checkpoint within a second")
	}
	if _, err := audit.VerifyInclusion(proof, key); err != nil {
		return fmt.Errorf("audit show: %w", err)
	}
	if c.output == formTable {
		return c.printEntryLine(t.name, proof.Entry)
	}
	out := provenEntry{Log: t.name, VerifierKey: key, Proof: proof}
	if c.output == formJSON {
		// Not indented: the entry's bytes are what is proven.
		enc := json.NewEncoder(c.out)
		enc.SetEscapeHTML(false)
		return enc.Encode(out)
	}
	return printYAML(c.out, out)
}
