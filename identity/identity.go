// Package identity says who is who: it issues and verifies the short-lived
// certificates (X.509 SVIDs of the SPIFFE standard) by which agents, controllers,
// workloads and administrators prove their names, and the signed envelopes in
// which rulesets and batches of events travel.
//
// It promises that a name holds only lower-case letters, digits and hyphens, so
// that it can never widen a permission or leave a path; that names come from the
// issuer and never from the certificate request; that a private key is written
// only to a file of mode 0600 and never leaves the process otherwise; and that an
// envelope of one kind never opens as another.
//
// It never decides what a name may do, and it never trusts a clock by more than
// [ClockTolerance].
package identity

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// DefaultTrustDomain is used where nobody names another.
	DefaultTrustDomain = "bocage.local"
	// DefaultTTL is the life of an SVID; it is renewed at half of it.
	DefaultTTL = time.Hour
	// ClockTolerance is by how much two clocks may differ without a valid
	// certificate being refused. It is also the most by which an expired
	// certificate may outlive its end.
	ClockTolerance = 5 * time.Minute
)

// ErrUntrusted means that a chain, signature or envelope does not prove what it
// claims.
var ErrUntrusted = errors.New("not trusted")

// label is RFC 1123's label: the only shape of a name's parts. No dot, so that a
// name is one token of a stream's subject; no wildcard, ever.
var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// Roles by the first part of a path, with the number of names that follow.
func namesAfter(role string) (int, bool) {
	switch role {
	case "agent", "controller", "user", "admin", "policy-admin", "responder", "auditor", "viewer":
		return 1, true
	case "workload", "owner":
		return 2, true
	}
	return 0, false
}

// CheckPath says whether a path names somebody: /agent/HOST, /controller/NAME,
// /workload/NAMESPACE/NAME, a person: /user/NAME, or a person by role: /admin/NAME,
// /policy-admin/NAME, /responder/NAME, /auditor/NAME, /viewer/NAME or
// /owner/NAMESPACE/NAME. Each name is a DNS label.
func CheckPath(path string) error {
	role, names, err := splitPath(path)
	if err != nil {
		return err
	}
	want, known := namesAfter(role)
	if !known {
		return fmt.Errorf("path %q starts with neither /agent, /controller, /workload nor /user, nor a person's role, such as /admin", path)
	}
	if len(names) != want {
		return fmt.Errorf("path %q holds %d names after /%s: want %d", path, len(names), role, want)
	}
	for _, name := range names {
		if !label.MatchString(name) {
			return fmt.Errorf("path %q: %q is not a DNS label: at most 63 lower-case letters, digits and '-', starting and ending with a letter or digit", path, name)
		}
	}
	return nil
}

func splitPath(path string) (role string, names []string, err error) {
	if len(path) > 256 || !strings.HasPrefix(path, "/") {
		return "", nil, fmt.Errorf("path %.64q is not an absolute path of at most 256 bytes", path)
	}
	parts := strings.Split(path[1:], "/")
	return parts[0], parts[1:], nil
}

// ID is the SPIFFE id of a path in a trust domain.
func ID(trustDomain, path string) (string, error) {
	if err := checkTrustDomain(trustDomain); err != nil {
		return "", err
	}
	if err := CheckPath(path); err != nil {
		return "", err
	}
	return "spiffe://" + trustDomain + path, nil
}

// ParseID splits a SPIFFE id into trust domain and path, and checks both.
func ParseID(id string) (trustDomain, path string, err error) {
	rest, ok := strings.CutPrefix(id, "spiffe://")
	slash := strings.IndexByte(rest, '/')
	if !ok || slash < 0 {
		return "", "", fmt.Errorf("%.320q is no SPIFFE id with a path", id)
	}
	trustDomain, path = rest[:slash], rest[slash:]
	if err := checkTrustDomain(trustDomain); err != nil {
		return "", "", err
	}
	return trustDomain, path, CheckPath(path)
}

// AgentName returns the host of an agent's SPIFFE id, or false if it is none.
func AgentName(id string) (string, bool) { return nameAfter(id, "/agent/") }

// ControllerName returns the name in a controller's SPIFFE id, or false if it is
// none.
func ControllerName(id string) (string, bool) { return nameAfter(id, "/controller/") }

func nameAfter(id, role string) (string, bool) {
	_, path, err := ParseID(id)
	if err != nil || !strings.HasPrefix(path, role) {
		return "", false
	}
	return path[len(role):], true
}

func checkTrustDomain(trustDomain string) error {
	parsed, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil || parsed.Name() != trustDomain {
		return fmt.Errorf("trust domain %.300q is not a name of lower-case letters, digits, '.', '-' and '_', such as %s", trustDomain, DefaultTrustDomain)
	}
	return nil
}
