// This file holds the published JSON Schema of an entry.

package audit

import (
	"bytes"
	_ "embed"
)

//go:embed schema.json
var schema []byte

// Schema is the JSON Schema (draft 2020-12) of an entry as it is exported.
func Schema() []byte { return bytes.Clone(schema) }
