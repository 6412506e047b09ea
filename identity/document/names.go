// This file holds the syntax of names, namespaces, labels and annotations,
// which is that of Kubernetes objects.

package document

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	maxSubdomainBytes   = 253
	maxLabelBytes       = 63
	maxAnnotationsBytes = 256 << 10
)

// checkMetadata hands each fault of m to fault, with the field's path.
func checkMetadata(m Metadata, fault func(field, found, allowed, format string, args ...any)) {
	if m.Name == "" {
		fault("metadata.name", "", "a DNS subdomain such as web", "is missing")
	} else if reason := checkDNSSubdomain(m.Name); reason != "" {
		fault("metadata.name", m.Name, "", "%s", reason)
	}
	if m.Namespace != "" {
		if reason := checkDNSLabel(m.Namespace); reason != "" {
			fault("metadata.namespace", m.Namespace, "", "%s", reason)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(m.Labels)) {
		value := m.Labels[key]
		if reason := CheckLabelKey(key); reason != "" {
			fault("metadata.labels."+key, key, "", "label key %s", reason)
		} else if reason := CheckLabelValue(value); reason != "" {
			fault("metadata.labels."+key, value, "", "label value %s", reason)
		}
	}
	total := 0
	for _, key := range slices.Sorted(maps.Keys(m.Annotations)) {
		total += len(key) + len(m.Annotations[key])
		if reason := CheckLabelKey(key); reason != "" {
			fault("metadata.annotations."+key, key, "", "annotation key %s", reason)
		}
	}
	if total > maxAnnotationsBytes {
		fault("metadata.annotations", "", "", "annotations are %d bytes, more than %d", total, maxAnnotationsBytes)
	}
}

// checkDNSLabel says what keeps s from being a DNS label (RFC 1123 §2.1) of
// lower case, or "".
func checkDNSLabel(s string) string {
	if s == "" {
		return "is empty"
	}
	if len(s) > maxLabelBytes {
		return fmt.Sprintf("is %d bytes, more than %d", len(s), maxLabelBytes)
	}
	for i := range len(s) {
		if !lowerAlnum(s[i]) && s[i] != '-' {
			return fmt.Sprintf("has %q: only a-z, 0-9 and '-' are allowed", s[i])
		}
	}
	if s[0] == '-' || s[len(s)-1] == '-' {
		return "starts or ends with '-'"
	}
	return ""
}

// checkDNSSubdomain says what keeps s from being DNS labels joined by dots.
func checkDNSSubdomain(s string) string {
	if s == "" {
		return "is empty"
	}
	if len(s) > maxSubdomainBytes {
		return fmt.Sprintf("is %d bytes, more than %d", len(s), maxSubdomainBytes)
	}
	for label := range strings.SplitSeq(s, ".") {
		switch {
		case label == "":
			return "has an empty part between dots"
		case label[0] == '-' || label[len(label)-1] == '-':
			return "has a part that starts or ends with '-'"
		}
		for i := range len(label) {
			if !lowerAlnum(label[i]) && label[i] != '-' {
				return fmt.Sprintf("has %q: only a-z, 0-9, '-' and '.' are allowed", label[i])
			}
		}
	}
	return ""
}

// CheckLabelKey says what keeps s from being a label or annotation key:
// an optional DNS subdomain and '/', then at most 63 letters, digits, '-',
// '_' and '.', with a letter or digit at both ends. It returns "" if s is one.
func CheckLabelKey(s string) string {
	prefix, name, ok := strings.Cut(s, "/")
	if !ok {
		prefix, name = "", s
	} else if reason := checkDNSSubdomain(prefix); reason != "" {
		return "prefix " + reason
	}
	if name == "" {
		return "is empty"
	}
	return CheckLabelValue(name)
}

// CheckLabelValue says what keeps s from being a label value: empty, or at
// most 63 letters, digits, '-', '_' and '.', with a letter or digit at both
// ends. It returns "" if s is one.
func CheckLabelValue(s string) string {
	if s == "" {
		return ""
	}
	if len(s) > maxLabelBytes {
		return fmt.Sprintf("is %d bytes, more than %d", len(s), maxLabelBytes)
	}
	for i := range len(s) {
		if !alnum(s[i]) && !strings.ContainsRune("-_.", rune(s[i])) {
			return fmt.Sprintf("has %q: only letters, digits, '-', '_' and '.' are allowed", s[i])
		}
	}
	if !alnum(s[0]) || !alnum(s[len(s)-1]) {
		return "does not start and end with a letter or digit"
	}
	return ""
}

func lowerAlnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

func alnum(c byte) bool { return lowerAlnum(c) || c >= 'A' && c <= 'Z' }
