// This file holds the strict decoder: a tree into Go values, with every fault
// and where it is.

package document

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Scalar is a string field that also takes numbers and booleans, as the text
// they are written in: 1000 and "1000" are the same.
type Scalar string

// Values is a list of texts that may be written as one scalar: 1000, "1000"
// and ["1000"] are the same.
type Values []string

// Unsupported is the type of a field that exists in the language of a
// document and is not supported by this version. Anything written there is a
// fault, and suggestions leave the field out.
type Unsupported struct{}

// ignored is the type of a field that may hold anything and means nothing.
type ignored struct{}

// rawNode takes a subtree as it is.
type rawNode struct{ node *node }

// Decode decodes a configuration file of one YAML or JSON document strictly
// into a pointer to a struct whose fields carry `json:"name"` tags. Fields
// that are not written keep what they hold, and so does everything for an
// empty file. Supported are structs, pointers, slices, maps by string, basic
// types, time.Duration as text such as 4h, encoding.TextUnmarshaler, any,
// Scalar, Values and Unsupported. The error is an Errors with every fault.
func Decode(file string, data []byte, into any) error {
	roots, errs := parseStream(file, data)
	if len(errs) > 0 {
		return errs.orNil()
	}
	switch len(roots) {
	case 0:
		return nil
	case 1:
		dec := decoder{file: file}
		dec.value(roots[0], into)
		return dec.errs.orNil()
	}
	return Errors{{File: file, Line: roots[1].line, Reason: fmt.Sprintf("has %d documents instead of one", len(roots))}}
}

type decoder struct {
	file string
	errs Errors
}

func (d *decoder) value(n *node, into any) { d.valueAt(n, into, "") }

func (d *decoder) valueAt(n *node, into any, path string) {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		panic(fmt.Sprintf("document: decoding into %T, which is not a pointer", into))
	}
	d.set(n, v.Elem(), path)
}

func (d *decoder) fault(n *node, path, reason, allowed, hint string) {
	d.errs = append(d.errs, &Error{File: d.file, Line: n.line, Field: path, Reason: reason, Found: n.describe(), Allowed: allowed, Hint: hint})
}

var (
	typeDuration    = reflect.TypeFor[time.Duration]()
	typeTime        = reflect.TypeFor[time.Time]()
	typeScalar      = reflect.TypeFor[Scalar]()
	typeValues      = reflect.TypeFor[Values]()
	typeUnsupported = reflect.TypeFor[Unsupported]()
	typeIgnored     = reflect.TypeFor[ignored]()
	typeRawNode     = reflect.TypeFor[rawNode]()
	typeText        = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// set decodes n into v.
func (d *decoder) set(n *node, v reflect.Value, path string) {
	if len(d.errs) >= maxFaults {
		return
	}
	switch v.Type() {
	case typeUnsupported:
		d.errs = append(d.errs, &Error{File: d.file, Line: n.line, Field: path, Reason: "is not supported by this version"})
		return
	case typeIgnored:
		return
	case typeTime:
		if n.kind == nullNode {
			return // Kubernetes tools write creationTimestamp: null
		}
	}
	if n.kind == nullNode {
		d.fault(n, path, "has no value", expectation(v.Type()), "remove the field or give it a value")
		return
	}
	switch v.Type() {
	case typeRawNode:
		v.Set(reflect.ValueOf(rawNode{n}))
		return
	case typeScalar:
		if text, ok := d.scalar(n, path); ok {
			v.SetString(text)
		}
		return
	case typeValues:
		d.setValues(n, v, path)
		return
	case typeDuration:
		d.setDuration(n, v, path)
		return
	}
	if v.CanAddr() && v.Addr().Type().Implements(typeText) {
		d.setText(n, v, path)
		return
	}
	d.setKind(n, v, path)
}

// setKind decodes n by the kind of v's type.
func (d *decoder) setKind(n *node, v reflect.Value, path string) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		d.set(n, v.Elem(), path)
	case reflect.Struct:
		d.setStruct(n, v, path)
	case reflect.Map:
		d.setMap(n, v, path)
	case reflect.Slice:
		d.setSlice(n, v, path)
	case reflect.Interface:
		v.Set(reflect.ValueOf(n.plain()))
	case reflect.String:
		if n.kind != stringNode {
			d.wrongType(n, v, path)
			return
		}
		v.SetString(n.text)
	case reflect.Bool:
		if n.kind != boolNode {
			d.wrongType(n, v, path)
			return
		}
		v.SetBool(n.text == "true")
	default:
		d.setNumber(n, v, path)
	}
}

func (d *decoder) setNumber(n *node, v reflect.Value, path string) {
	if n.kind != numberNode {
		d.wrongType(n, v, path)
		return
	}
	switch {
	case v.CanInt():
		i, err := strconv.ParseInt(n.text, 10, v.Type().Bits())
		if err != nil {
			d.fault(n, path, "is not a number that fits", expectation(v.Type()), "")
			return
		}
		v.SetInt(i)
	case v.CanUint():
		u, err := strconv.ParseUint(n.text, 10, v.Type().Bits())
		if err != nil {
			d.fault(n, path, "is not a number that fits", expectation(v.Type()), "")
			return
		}
		v.SetUint(u)
	case v.CanFloat():
		f, err := strconv.ParseFloat(n.text, v.Type().Bits())
		if err != nil {
			d.fault(n, path, "is not a number that fits", expectation(v.Type()), "")
			return
		}
		v.SetFloat(f)
	default:
		panic(fmt.Sprintf("document: decoding into a field of type %s", v.Type()))
	}
}

func (d *decoder) wrongType(n *node, v reflect.Value, path string) {
	hint := ""
	if v.Kind() == reflect.String && (n.kind == numberNode || n.kind == boolNode) {
		hint = "quote it"
	}
	d.fault(n, path, "wrong type", expectation(v.Type()), hint)
}

// expectation says what may be written into a field of this type.
func expectation(t reflect.Type) string {
	switch {
	case t == typeDuration:
		return "a duration such as 4h or 30s"
	case t == typeTime:
		return "a time such as 2026-01-02T15:04:05Z"
	case t == typeScalar:
		return "a string or a number"
	case t == typeValues:
		return "a string, a number, or a list of them"
	case reflect.PointerTo(t).Implements(typeText):
		return "a string"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return expectation(t.Elem())
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "a mapping"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return fmt.Sprintf("a whole number of at most %d bits", t.Bits()-1)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return fmt.Sprintf("a whole number from 0 to %d", uint64(1)<<(t.Bits()-1)-1+uint64(1)<<(t.Bits()-1))
	case reflect.Float32, reflect.Float64:
		return "a number"
	}
	return "a value"
}

func (d *decoder) scalar(n *node, path string) (string, bool) {
	switch n.kind {
	case stringNode, numberNode, boolNode:
		return n.text, true
	case nullNode:
		d.fault(n, path, "has no value", expectation(typeScalar), "remove it or give it a value")
	default:
		d.fault(n, path, "wrong type", expectation(typeScalar), "")
	}
	return "", false
}

func (d *decoder) setValues(n *node, v reflect.Value, path string) {
	if n.kind != listNode {
		if text, ok := d.scalar(n, path); ok {
			v.Set(reflect.ValueOf(Values{text}))
		}
		return
	}
	values := make(Values, 0, len(n.items))
	for i, item := range n.items {
		if text, ok := d.scalar(item, path+"["+strconv.Itoa(i)+"]"); ok {
			values = append(values, text)
		}
	}
	v.Set(reflect.ValueOf(values))
}

func (d *decoder) setDuration(n *node, v reflect.Value, path string) {
	if n.kind != stringNode {
		d.wrongType(n, v, path)
		return
	}
	duration, err := time.ParseDuration(n.text)
	if err != nil {
		d.fault(n, path, "is not a duration", expectation(typeDuration), "")
		return
	}
	v.SetInt(int64(duration))
}

func (d *decoder) setText(n *node, v reflect.Value, path string) {
	if n.kind != stringNode {
		d.wrongType(n, v, path)
		return
	}
	if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.text)); err != nil {
		allowed := ""
		if v.Type() == typeTime {
			allowed = expectation(typeTime)
		}
		d.errs = append(d.errs, &Error{File: d.file, Line: n.line, Field: path, Reason: err.Error(), Allowed: allowed, cause: err})
	}
}

func (d *decoder) setSlice(n *node, v reflect.Value, path string) {
	if n.kind != listNode {
		d.wrongType(n, v, path)
		return
	}
	list := reflect.MakeSlice(v.Type(), len(n.items), len(n.items))
	for i, item := range n.items {
		d.set(item, list.Index(i), path+"["+strconv.Itoa(i)+"]")
	}
	v.Set(list)
}

func (d *decoder) setMap(n *node, v reflect.Value, path string) {
	if n.kind != mapNode {
		d.wrongType(n, v, path)
		return
	}
	if v.Type().Key().Kind() != reflect.String {
		panic(fmt.Sprintf("document: decoding into a map by %s", v.Type().Key()))
	}
	m := reflect.MakeMapWithSize(v.Type(), len(n.fields))
	for _, f := range n.fields {
		value := reflect.New(v.Type().Elem()).Elem()
		d.set(f.value, value, dotted(path, f.name))
		m.SetMapIndex(reflect.ValueOf(f.name).Convert(v.Type().Key()), value)
	}
	v.Set(m)
}

func (d *decoder) setStruct(n *node, v reflect.Value, path string) {
	if n.kind != mapNode {
		d.wrongType(n, v, path)
		return
	}
	l := layoutOf(v.Type())
	for _, f := range n.fields {
		if len(d.errs) >= maxFaults {
			return
		}
		index, ok := l.fields[f.name]
		if !ok {
			e := &Error{File: d.file, Line: f.line, Field: dotted(path, f.name), Reason: "unknown field", Allowed: joined(l.names)}
			if near := Nearest(f.name, l.names); near != "" {
				e.Hint = suggestion(dotted(path, near))
			}
			d.errs = append(d.errs, e)
			continue
		}
		d.set(f.value, v.FieldByIndex(index), dotted(path, f.name))
	}
}

// layout is what a struct type looks like in a document.
type layout struct {
	fields map[string][]int // index paths by json name, embedded structs' too
	names  []string         // those that are worth suggesting, in their order
}

// layouts has the layout of each type that was decoded into: there are few,
// and looking at tags takes longer than all else.
var layouts sync.Map

func layoutOf(t reflect.Type) layout {
	if known, ok := layouts.Load(t); ok {
		return known.(layout)
	}
	l := layout{fields: make(map[string][]int)}
	for sf := range t.Fields() {
		name, _, _ := strings.Cut(sf.Tag.Get("json"), ",")
		if sf.Anonymous && name == "" && sf.Type.Kind() == reflect.Struct {
			inner := layoutOf(sf.Type)
			for name, index := range inner.fields {
				l.fields[name] = append(slices.Clone(sf.Index), index...)
			}
			l.names = append(l.names, inner.names...)
			continue
		}
		if name == "" || name == "-" || !sf.IsExported() {
			continue
		}
		l.fields[name] = sf.Index
		if sf.Type != typeUnsupported && sf.Type != typeIgnored {
			l.names = append(l.names, name)
		}
	}
	layouts.Store(t, l)
	return l
}
