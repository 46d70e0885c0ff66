package discover

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"regexp"
	"slices"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host/container"
)

// Labels of containers and networks by which their owner says where they belong.
const (
	labelNamespace = "bocage.dev/namespace"
	// Prefix is that of the labels that a container's owner may choose freely.
	Prefix = "container/"
)

// DefaultNamespace is that of containers of which nobody says another.
const DefaultNamespace = "default"

// projectLabels name the project that a compose program started a container for.
func projectLabels() []string {
	return []string{"com.docker.compose.project", "io.podman.compose.project"}
}

// dull are labels that tell containers apart which are one to policy, or that are
// the builder's and not the owner's.
func dull(key string) bool {
	switch key {
	case "com.docker.compose.project", "com.docker.compose.service", "io.podman.compose.project", "io.podman.compose.service":
		return false
	case "maintainer", "PODMAN_SYSTEMD_UNIT":
		return true
	}
	for _, prefix := range []string{"com.docker.compose.", "io.podman.", "io.buildah.", "org.opencontainers.", "desktop.docker.", "com.docker.", "bocage.dev/"} {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

var (
	dnsLabel   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	labelValue = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$`)
	labelName  = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
	notInName  = regexp.MustCompile(`[^-a-z0-9]+`)
)

// mostLabels bounds the labels that a container brings along.
const mostLabels = 64

// labelsOf gives a workload its container's labels: under Prefix, where whoever
// runs containers may write what they like, and those that the host's administrator
// trusts them with also as they are. What is no label is left out.
func labelsOf(own map[string]string, trusted []string) map[string]string {
	labels := map[string]string{}
	keys := slices.Sorted(maps.Keys(own))
	// Those that need no change come first, so that no other takes their place.
	for _, changed := range []bool{false, true} {
		for _, key := range keys {
			value := own[key]
			name := strings.ReplaceAll(key, "/", ".")
			if (name != key) != changed || dull(key) || !labelName.MatchString(name) || !labelValue.MatchString(value) {
				continue
			}
			if _, taken := labels[Prefix+name]; !taken && len(labels) < mostLabels {
				labels[Prefix+name] = value
			}
		}
	}
	for _, key := range trusted {
		if value, ok := own[key]; ok && labelValue.MatchString(value) {
			labels[key] = value
		}
	}
	return labels
}

// namespaceOf says where a container belongs: as its source is bound to, as a label
// of its own says, after its compose project, else the default.
func namespaceOf(bound, fallback string, labels map[string]string) string {
	if bound != "" {
		return bound
	}
	if name := labels[labelNamespace]; dnsLabel.MatchString(name) {
		return name
	}
	for _, key := range projectLabels() {
		if project := labels[key]; project != "" {
			return asLabel(project, 63)
		}
	}
	return fallback
}

// nameOf makes a workload's name of a container's: what has to be changed for it
// gets a mark of what it was, so that two names never become one.
func nameOf(name, host string) string {
	return bocage.SightingName(asLabel(name, max(63-len(host)-1, 20)), host)
}

// asLabel makes a DNS label of a text, at most so long.
func asLabel(text string, most int) string {
	if dnsLabel.MatchString(text) && len(text) <= most {
		return text
	}
	sum := sha256.Sum256([]byte(text))
	mark := hex.EncodeToString(sum[:4])
	label := strings.Trim(notInName.ReplaceAllString(strings.ToLower(text), "-"), "-")
	label = strings.Trim(label[:min(len(label), most-len(mark)-1)], "-")
	if label == "" {
		return "c-" + mark
	}
	return label + "-" + mark
}

// trustable says whether an administrator may let containers' owners choose a label.
func trustable(key string) bool {
	w := bocage.Sighting{Name: bocage.SightingName("x", "h"), Namespace: "x", Labels: map[string]string{key: "x"}}
	_, faults := w.Workload("h")
	return !slices.ContainsFunc(faults, func(f bocage.Fault) bool { return strings.HasPrefix(f.Field, "metadata.labels") })
}

// ownLabels are the labels of a container's pod and its own, which win.
func ownLabels(c *container.Container, pod *container.Pod) map[string]string {
	labels := map[string]string{}
	if pod != nil {
		maps.Copy(labels, pod.Labels)
	}
	maps.Copy(labels, c.Labels)
	return labels
}
