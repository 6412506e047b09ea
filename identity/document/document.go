// This file holds Document: an envelope with its metadata and its spec as it
// was written, parsed from YAML or JSON.

package document

import (
	"bytes"
	"fmt"
	"maps"
	"time"
)

// APIVersion is the only apiVersion that is accepted.
const APIVersion = "aval.dev/v1alpha1"

// MaxDocumentBytes bounds one document, measured in its canonical JSON form.
const MaxDocumentBytes = 1 << 20

// MaxStreamBytes bounds what one call of Parse or Decode reads.
const MaxStreamBytes = 8 << 20

// Metadata is who a document is and what hangs on it.
type Metadata struct {
	Name        string            // a DNS subdomain (RFC 1123), at most 253 bytes
	Namespace   string            // a DNS label (RFC 1123), or "" where none was written
	Labels      map[string]string // syntax of Kubernetes labels; nil where none
	Annotations map[string]string // keys as labels; at most 256 KiB together
	// CreationTimestamp is when the document was first stored, in UTC; zero
	// where it never was. A file may claim any value: a server sets its own.
	CreationTimestamp time.Time
}

// Document is one parsed document. It is immutable and safe for concurrent
// use. The zero value is invalid.
type Document struct {
	file string
	kind Kind
	meta Metadata
	root *node // the whole document, for positions; never nil in a valid one
	spec *node // the spec mapping, an empty one where none was written
}

// Parse reads a stream of YAML documents, or JSON objects one after the
// other. The file names the source in errors and may be empty. Empty
// documents are skipped. Anchors, aliases, merge keys, explicit tags,
// duplicate keys and unknown fields are refused; status and the metadata that
// a Kubernetes API server adds are dropped. A missing namespace is left
// empty (see WithNamespace). Either all documents are good, or the error is
// an Errors with every fault and no document is returned.
func Parse(file string, data []byte) ([]Document, error) {
	roots, errs := parseStream(file, data)
	var docs []Document
	for _, root := range roots {
		d, faults := newDocument(file, root)
		if errs = append(errs, faults...); len(faults) == 0 {
			docs = append(docs, d)
		}
	}
	if len(errs) > 0 {
		return nil, errs.sorted()
	}
	return docs, nil
}

// FromJSON reads one document from JSON, such as JSON returned: it is what
// stores and the wire hold. Unlike Parse it requires a namespace. Errors have
// no file and no line.
func FromJSON(data []byte) (Document, error) {
	if len(data) > MaxDocumentBytes {
		return Document{}, Errors{{Reason: fmt.Sprintf("document is %d bytes, more than %d", len(data), MaxDocumentBytes)}}
	}
	root, err := parseJSON(data)
	if err != nil {
		return Document{}, Errors{err}
	}
	d, errs := newDocument("", root)
	if len(errs) == 0 && d.meta.Namespace == "" {
		errs = Errors{{Field: "metadata.namespace", Reason: "is missing", Allowed: "a DNS label"}}
	}
	if len(errs) > 0 {
		return Document{}, errs.sorted()
	}
	return d, nil
}

// envelope is what every document looks like from outside.
type envelope struct {
	APIVersion string      `json:"apiVersion"`
	Kind       string      `json:"kind"`
	Metadata   rawMetadata `json:"metadata"`
	Spec       rawNode     `json:"spec"`
	Status     ignored     `json:"status"`
}

// rawMetadata is Metadata as written, with the fields that a Kubernetes API
// server adds, which say nothing here.
type rawMetadata struct {
	Name              string            `json:"name"`
	Namespace         string            `json:"namespace"`
	Labels            map[string]string `json:"labels"`
	Annotations       map[string]string `json:"annotations"`
	CreationTimestamp time.Time         `json:"creationTimestamp"`
	UID               ignored           `json:"uid"`
	ResourceVersion   ignored           `json:"resourceVersion"`
	Generation        ignored           `json:"generation"`
	ManagedFields     ignored           `json:"managedFields"`
	SelfLink          ignored           `json:"selfLink"`
}

func newDocument(file string, root *node) (Document, Errors) {
	var env envelope
	dec := decoder{file: file}
	dec.value(root, &env)
	d := Document{file: file, root: root, spec: env.Spec.node}
	if d.spec == nil {
		d.spec = &node{kind: mapNode, line: root.line}
	}
	errs := dec.errs
	fault := func(field, found, allowed, format string, args ...any) {
		if !errs.at(field) {
			errs = append(errs, d.Errorf(field, found, allowed, format, args...))
		}
	}
	if root.kind != mapNode {
		return d, errs
	}
	switch env.APIVersion {
	case APIVersion:
	case "":
		fault("apiVersion", "", APIVersion, "is missing")
	default:
		fault("apiVersion", env.APIVersion, APIVersion, "is not supported")
	}
	kind, ok := kindNamed(env.Kind)
	switch {
	case ok:
		d.kind = kind
	case env.Kind == "":
		fault("kind", "", joined(kindNames()), "is missing")
	default:
		fault("kind", env.Kind, joined(kindNames()), "is not a known kind")
		errs[len(errs)-1].Hint = suggestion(Nearest(env.Kind, kindNames()))
	}
	if d.spec.kind != mapNode {
		fault("spec", "", "a mapping", "wrong type")
		errs[len(errs)-1].Found = d.spec.describe()
	}
	m := env.Metadata
	d.meta = Metadata{Name: m.Name, Namespace: m.Namespace, Labels: nonEmpty(m.Labels), Annotations: nonEmpty(m.Annotations)}
	if !m.CreationTimestamp.IsZero() {
		d.meta.CreationTimestamp = m.CreationTimestamp.UTC()
	}
	checkMetadata(d.meta, fault)
	if n := len(d.canonical()); n > MaxDocumentBytes {
		fault("", "", "", "document is %d bytes, more than %d", n, MaxDocumentBytes)
	}
	return d, errs
}

func nonEmpty(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return m
}

// Key returns the document's identity among all documents.
func (d Document) Key() Key {
	return Key{Kind: d.kind, Namespace: d.meta.Namespace, Name: d.meta.Name}
}

// Kind returns the canonical kind.
func (d Document) Kind() Kind { return d.kind }

// Metadata returns a copy of the metadata, which the caller may change.
func (d Document) Metadata() Metadata {
	m := d.meta
	m.Labels, m.Annotations = maps.Clone(m.Labels), maps.Clone(m.Annotations)
	return m
}

// IsZero reports whether d is the invalid zero value.
func (d Document) IsZero() bool { return d.root == nil }

// File returns the file name that was given to Parse, or "".
func (d Document) File() string { return d.file }

// Line returns the line of a field such as "spec.workload.unix.uid" or
// "spec.rules[0]", counted from 1 in its file. A field that is not there has
// the line of the nearest parent that is; 0 means that d came without lines.
func (d Document) Line(field string) int {
	if d.root == nil {
		return 0
	}
	return d.root.lineOf(field)
}

// WithCreationTimestamp returns d with this creation time. The zero time
// removes it.
func (d Document) WithCreationTimestamp(t time.Time) Document {
	if !t.IsZero() {
		t = t.UTC().Round(0)
	}
	d.meta.CreationTimestamp = t
	return d
}

// WithNamespace returns d in this namespace if it names none itself. A
// namespace that is written in the document stays.
func (d Document) WithNamespace(namespace string) (Document, error) {
	if reason := checkDNSLabel(namespace); reason != "" {
		return Document{}, fmt.Errorf("namespace %q %s", namespace, reason)
	}
	if d.meta.Namespace == "" {
		d.meta.Namespace = namespace
	}
	return d, nil
}

// DecodeSpec decodes the spec strictly into a pointer to a struct whose
// fields carry `json:"name"` tags. The error is an Errors with every fault.
func (d Document) DecodeSpec(into any) error {
	dec := decoder{file: d.file}
	dec.valueAt(d.spec, into, "spec")
	return dec.errs.orNil()
}

// Equal reports whether both documents have the same canonical form.
func (d Document) Equal(other Document) bool {
	if d.IsZero() || other.IsZero() {
		return d.IsZero() == other.IsZero()
	}
	return bytes.Equal(d.canonical(), other.canonical())
}
