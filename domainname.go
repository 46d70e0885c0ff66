package bocage

import (
	"fmt"
	"net/netip"
	"strings"
)

// DomainName is a name in the DNS, or a pattern of them, in its one canonical
// form: lower case, no dot at the end, other alphabets in A-label form (xn--...).
// "*.example.com" is every name of one or more labels below example.com, and not
// example.com itself.
type DomainName string

// Bounds of names (RFC 1035).
const (
	longestDomainName = 253
	longestLabel      = 63
)

// ParseDomainName reads a name as people write it: in any case, with a dot at its
// end or without.
func ParseDomainName(text string) (DomainName, error) {
	name := strings.ToLower(strings.TrimSuffix(text, "."))
	for i := range len(text) {
		if text[i] >= 0x80 {
			return "", fmt.Errorf("%q has letters beyond ASCII: write the name in its A-label form, which begins with xn--", text)
		}
	}
	if len(name) > longestDomainName {
		return "", fmt.Errorf("%.20q... has %d characters: a domain name has at most %d", name, len(name), longestDomainName)
	}
	labels := strings.Split(strings.TrimPrefix(name, "*."), ".")
	if len(labels) < 2 {
		return "", fmt.Errorf("%q is not a domain name such as example.com or *.example.com: it needs two labels at least", text)
	}
	for _, label := range labels {
		if !isHostLabel(label) {
			return "", fmt.Errorf("%q is not a domain name such as example.com or *.example.com: %q is no label of one", text, label)
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return "", fmt.Errorf("%q is not a domain name: none ends in a number", text)
	}
	return DomainName(name), nil
}

// isHostLabel takes the underscore too, which names of services have.
func isHostLabel(label string) bool {
	if label == "" || len(label) > longestLabel || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	return strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}

// Wildcard returns the name below which every name is meant, or false.
func (n DomainName) Wildcard() (parent DomainName, is bool) {
	below, is := strings.CutPrefix(string(n), "*.")
	return DomainName(below), is
}

// Matches reports whether a canonical name is meant.
func (n DomainName) Matches(name DomainName) bool {
	if parent, is := n.Wildcard(); is {
		below, inside := strings.CutSuffix(string(name), "."+string(parent))
		return inside && below != ""
	}
	return n == name
}

// UnmarshalText reads a name and makes it canonical.
func (n *DomainName) UnmarshalText(text []byte) error {
	name, err := ParseDomainName(string(text))
	if err != nil {
		return err
	}
	*n = name
	return nil
}

// External is somewhere outside the inventory: a prefix, or the addresses that a
// name has for whoever asks the DNS for it. In text it is either.
type External struct {
	Prefix netip.Prefix
	Name   DomainName
}

// ExternalPrefix is that prefix.
func ExternalPrefix(p netip.Prefix) External { return External{Prefix: p} }

// IsValid reports whether it says anything.
func (e External) IsValid() bool { return e.Prefix.IsValid() || e.Name != "" }

func (e External) String() string {
	if e.Name != "" {
		return string(e.Name)
	}
	return e.Prefix.String()
}

// MarshalText writes the prefix or the name.
func (e External) MarshalText() ([]byte, error) {
	if !e.IsValid() {
		return nil, nil
	}
	return []byte(e.String()), nil
}

// UnmarshalText reads a prefix or a name.
func (e *External) UnmarshalText(text []byte) error {
	*e = External{}
	if len(text) == 0 {
		return nil
	}
	if prefix, err := netip.ParsePrefix(string(text)); err == nil {
		e.Prefix = prefix
		return nil
	}
	if addr, err := netip.ParseAddr(string(text)); err == nil {
		return fmt.Errorf("%s is an address: write the prefix %s", text, netip.PrefixFrom(addr.WithZone(""), addr.BitLen()))
	}
	if strings.ContainsAny(string(text), "/:") {
		return fmt.Errorf("%q is neither a CIDR such as 10.0.0.0/8 or 2001:db8::/32 nor a domain name such as example.com", text)
	}
	name, err := ParseDomainName(string(text))
	if err != nil {
		return fmt.Errorf("neither a CIDR such as 10.0.0.0/8 nor a name: %w", err)
	}
	e.Name = name
	return nil
}

// validate finds fault with what was not read from text.
func (e External) validate() Faults {
	var faults Faults
	switch {
	case e.Name != "" && e.Prefix.IsValid():
		faults.Add("", "has both a prefix and a name: use two entries")
	case e.Name != "":
		if name, err := ParseDomainName(string(e.Name)); err != nil {
			faults.Add("", "%v", err)
		} else if name != e.Name {
			faults.Add("", "%q is not canonical: write %s", string(e.Name), name)
		}
	default:
		faults = validatePrefixes([]netip.Prefix{e.Prefix})
	}
	return faults
}
