package bocage

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Fault is one thing wrong with a declaration.
type Fault struct {
	// Field is the path to the offending value, such as spec.provides[0].port.
	Field string `json:"field"`
	// Message says what is wrong and what would be right.
	Message string `json:"message"`
	// Source is file:line where it is known.
	Source string `json:"source,omitempty"`
}

func (f Fault) String() string {
	s := f.Message
	if f.Field != "" {
		s = visible(f.Field) + ": " + s
	}
	if f.Source != "" {
		s = visible(f.Source) + ": " + s
	}
	return s
}

// visible writes out what a terminal would obey, or not show, where somebody else
// has chosen the text: a key in a path, the name of a file.
func visible(text string) string {
	if !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return text
	}
	quoted := strconv.QuoteToGraphic(text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// Faults is every fault of one or more declarations.
type Faults []Fault

// Add notes a fault.
func (f *Faults) Add(field, format string, args ...any) {
	*f = append(*f, Fault{Field: field, Message: fmt.Sprintf(format, args...)})
}

// Under prefixes the field of every fault, for a part that validates itself.
func (f Faults) Under(prefix string) Faults {
	out := make(Faults, len(f))
	for i, fault := range f {
		switch {
		case fault.Field == "":
			fault.Field = prefix
		case strings.HasPrefix(fault.Field, "["):
			fault.Field = prefix + fault.Field
		default:
			fault.Field = prefix + "." + fault.Field
		}
		out[i] = fault
	}
	return out
}

// Err returns nil if there is no fault.
func (f Faults) Err() error {
	if len(f) == 0 {
		return nil
	}
	return f
}

// Error lists all faults, one a line.
func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i, fault := range f {
		lines[i] = fault.String()
	}
	return strings.Join(lines, "\n")
}

// validateMeta checks names and labels as Kubernetes does.
func validateMeta(m *ObjectMeta, namespaced bool) Faults {
	var faults Faults
	if len(m.Name) > 253 || !isDNSSubdomain(m.Name) {
		faults.Add("metadata.name", "%q is not a lower-case DNS name of at most 253 characters", m.Name)
	}
	switch {
	case namespaced && !isDNSLabel(m.Namespace):
		faults.Add("metadata.namespace", "%q is not a lower-case DNS label of at most 63 characters", m.Namespace)
	case !namespaced && m.Namespace != "":
		faults.Add("metadata.namespace", "the kind is cluster-wide: remove %q", m.Namespace)
	}
	return append(faults, validateLabels(m.Labels).Under("metadata.labels")...)
}

func validateLabels(labels map[string]string) Faults {
	var faults Faults
	valid := true
	for key, value := range labels {
		valid = valid && isLabelKey(key) && isLabelValue(value)
	}
	if valid {
		return nil // as nearly all are, and nothing is to be put in order
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		faults = append(faults, validateLabelKey(key).Under("["+key+"]")...)
		if value := labels[key]; !isLabelValue(value) {
			faults.Add("["+key+"]", "%q is not a label value: at most 63 letters, digits, '-', '_' or '.', starting and ending with a letter or digit", value)
		}
	}
	return faults
}

func isLabelKey(key string) bool {
	prefix, name, found := strings.Cut(key, "/")
	if !found {
		return isLabelName(key)
	}
	return len(prefix) <= 253 && isDNSSubdomain(prefix) && isLabelName(name)
}

// validateLabelKey checks one key; the fault has no path of its own.
func validateLabelKey(key string) Faults {
	var faults Faults
	if !isLabelKey(key) {
		faults.Add("", "%q is not a label key: an optional DNS name and '/', then at most 63 letters, digits, '-', '_' or '.'", key)
	}
	return faults
}
