package manifest

import (
	"strings"
	"sync"
	"unicode"

	"bocage.dev/bocage"
)

// core is the group of Pods.
const core = ""

// spelling is an apiVersion and a kind as a file has them.
type spelling struct{ version, kind string }

func (s spelling) group() string { return bocage.Kind{APIVersion: s.version}.Group() }

// meaningful are the kinds that must not be left out of a file for a slip of the
// pen: those of bocage.Kinds, the Pods, Nodes and Namespaces that policies are
// about, and the lists of them.
var meaningful = sync.OnceValue(func() []spelling {
	all := []spelling{{"v1", "Pod"}, {"v1", "PodList"}, {"v1", "Node"}, {"v1", "NodeList"}, {"v1", "List"}}
	for _, k := range bocage.Kinds() {
		all = append(all, spelling{k.APIVersion, k.Name}, spelling{k.APIVersion, k.Name + "List"})
	}
	return all
})

// misspelled finds the fault of an object that is meant to be of a kind that matters
// and, by its apiVersion or kind, is none: left out as one of the world's other
// kinds it would be a policy that nobody heeds. Other kinds of the world, those too
// that decide elsewhere, such as Calico's NetworkPolicy, are not meant.
func (t *Tree) misspelled() bocage.Faults {
	version, hasVersion := t.Text("apiVersion")
	kind, hasKind := t.Text("kind")
	if !hasVersion || !hasKind || kind == "Event" {
		return nil
	}
	var faults bocage.Faults
	meant, ok := meantBy(version, kind)
	switch {
	case !ok:
	case meant.kind == "":
		faults.Add("apiVersion", "%q is not understood: did you mean %s?", version, meant.version)
	case meant.kind == kind:
		faults.Add("apiVersion", "%q has no %s: write apiVersion: %s", version, kind, meant.version)
	case meant.group() == (spelling{version, kind}).group():
		faults.Add("kind", "%q is unknown: did you mean %s?", kind, meant.kind)
	default:
		faults.Add("apiVersion", "%q has no %s: did you mean %s (apiVersion: %s)?", version, kind, meant.kind, meant.version)
	}
	return t.place(faults)
}

// meantBy finds what an apiVersion and a kind were meant to be, if they are not
// what they say. Without a kind, the apiVersion alone is wrong.
func meantBy(version, kind string) (spelling, bool) {
	said := spelling{version, kind}
	group := said.group()
	for _, s := range meaningful() {
		if s.kind == kind && s.group() == group {
			// What is ours has a fault of its own for other versions.
			return s, group == core && s.version != version
		}
	}
	if like(group, bocage.Kind{APIVersion: bocage.APIVersion}.Group()) && group != (bocage.Kind{APIVersion: bocage.APIVersion}).Group() {
		return spelling{version: bocage.APIVersion}, true
	}
	var best spelling
	near := -1
	for _, s := range meaningful() {
		d, ok := slips(kind, s.kind)
		switch {
		case !ok:
			continue
		case s.group() == group:
		case s.group() != core && like(group, s.group()):
			d += 10 // rather one slip than two
		case builtIn(group) && belongsTo(s) && (d == 0 || len(s.kind) >= len("NetworkPolicy")):
			d += 20
		default:
			continue
		}
		if near < 0 || d < near || d == near && s.kind < best.kind {
			best, near = s, d
		}
	}
	return best, near >= 0
}

// belongsTo reports whether the name of a kind says whose it is: nobody else of
// Kubernetes has a NetworkPolicy, but others have Applications.
func belongsTo(s spelling) bool {
	return s.group() != bocage.Kind{APIVersion: bocage.APIVersion}.Group()
}

// builtIn reports whether a group is one that Kubernetes itself has: those that
// others add have a domain of theirs.
func builtIn(group string) bool {
	return !strings.Contains(group, ".") || strings.HasSuffix(group, ".k8s.io") && !strings.Contains(group, ".x-k8s")
}

// like reports whether a group was probably meant to be another.
func like(group, meant string) bool {
	group = strings.ToLower(strings.TrimSpace(group))
	first, _, _ := strings.Cut(group, ".")
	word, _, _ := strings.Cut(meant, ".")
	if word == "bocage" && first == word {
		return true // bocage.io
	}
	return group == word || editDistance(group, meant) <= 2
}

// slips counts the slips of the pen between a kind and the one that was perhaps
// meant; false if there are more than somebody makes in a word of that length. Case,
// spaces and the plural are one.
func slips(kind, meant string) (int, bool) {
	if kind == meant {
		return 0, true
	}
	a, b := letters(kind), letters(meant)
	d := editDistance(a, b)
	return 1 + d, d == 0 || d <= min(1+len(b)/6, 3) && d*2 < len(b)
}

// letters is a name in lower case, in the singular, with letters only.
func letters(name string) string {
	name = strings.Map(func(r rune) rune {
		if !unicode.IsLetter(r) {
			return -1
		}
		return unicode.ToLower(r)
	}, name)
	if stem, ok := strings.CutSuffix(name, "ies"); ok {
		return stem + "y"
	}
	return strings.TrimSuffix(name, "s")
}
