package bocage

import "strings"

// The forms of names and labels, as Kubernetes defines them. They are checked for every
// object on every write and compilation, so this is done by character and not by regular
// expressions, which are slower.

// isDNSLabel reports whether a text is a DNS label (RFC 1123): the form of the names of
// namespaces and interfaces.
func isDNSLabel(s string) bool {
	return len(s) <= 63 && isSpelled(s, isLowerAlphanumeric, isLowerOrHyphen)
}

// isDNSSubdomain reports whether a text is a DNS subdomain (RFC 1123) of any length: the
// form of the names of objects.
func isDNSSubdomain(s string) bool {
	for {
		label, rest, more := strings.Cut(s, ".")
		if !isSpelled(label, isLowerAlphanumeric, isLowerOrHyphen) {
			return false
		}
		if !more {
			return true
		}
		s = rest
	}
}

// isLabelName reports whether a text may be the part of a label's key behind the
// prefix.
func isLabelName(s string) bool {
	return len(s) <= 63 && isSpelled(s, isAlphanumeric, func(c byte) bool { return isAlphanumeric(c) || c == '-' || c == '_' || c == '.' })
}

// isLabelValue reports whether a text may be the value of a label.
func isLabelValue(s string) bool { return s == "" || isLabelName(s) }

// IsServiceName reports whether a text has the form of Consume.Service: the name of
// an application, with its namespace before it or without.
func IsServiceName(s string) bool {
	namespace, name, found := strings.Cut(s, "/")
	if !found {
		namespace, name = "a", s
	}
	return IsWorkloadName(namespace + "/" + name)
}

// IsWorkloadName reports whether a text has the form namespace/name.
func IsWorkloadName(s string) bool {
	namespace, name, _ := strings.Cut(s, "/")
	return isDNSLabel(namespace) && len(name) <= 253 &&
		isSpelled(name, isLowerAlphanumeric, func(c byte) bool { return isLowerOrHyphen(c) || c == '.' })
}

// isSpelled reports whether the first and last characters of a text satisfy end, and those
// in between inner.
func isSpelled(s string, end, inner func(byte) bool) bool {
	if s == "" || !end(s[0]) || !end(s[len(s)-1]) {
		return false
	}
	for i := 1; i < len(s)-1; i++ {
		if !inner(s[i]) {
			return false
		}
	}
	return true
}

func isLowerAlphanumeric(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

func isLowerOrHyphen(c byte) bool { return isLowerAlphanumeric(c) || c == '-' }

func isAlphanumeric(c byte) bool { return isLowerAlphanumeric(c) || 'A' <= c && c <= 'Z' }
