package api

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// mostPrefer bounds how long a client may have an answer wait (RFC 7240) until policy has
// been made of what it wrote.
const mostPrefer = 5 * time.Second

// warnHeld tells who writes policy that policy is held: what they wrote is stored, and not in
// force. Clients that prefer to wait are told of the effect of what they wrote themselves,
// others of what was before.
func (s *Server) warnHeld(c *call, changes ...*change) {
	if s.config.Held == nil {
		return
	}
	var revision store.Revision
	about := false
	for _, ch := range changes {
		if about = about || policyKind(ch.kind) && !ch.dryRun; about {
			revision = max(revision, ch.revision)
		}
	}
	if !about {
		return
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), c.prefers())
	defer cancel()
	what, why := s.config.Held(ctx, revision)
	if what == "" {
		return
	}
	text := "policy is held: what you wrote is stored, and is not in force before that is mended: " + what
	if why != "" && !c.person.confined() {
		text += "; " + why
	}
	const most = 2000
	c.w.Header().Add("Warning", "299 "+bocage.WarningPolicy+" "+strconv.Quote(strings.ToValidUTF8(text[:min(len(text), most)], "")))
}

// prefers is how long the client would wait.
func (c *call) prefers() time.Duration {
	text, asked := strings.CutPrefix(c.r.Header.Get("Prefer"), "wait=")
	seconds, err := strconv.Atoi(text)
	if !asked || err != nil || seconds < 0 {
		return 0
	}
	return min(time.Duration(seconds)*time.Second, mostPrefer)
}

// policyKind reports whether objects of a kind come into force by generations alone.
func policyKind(kind bocage.Kind) bool {
	return slices.Contains([]string{"Application", "Guardrail", "Scope", "InspectionProfile", "Decoy", "Exception", "Response", "AddressGroup",
		"NetworkPolicy", "ClusterNetworkPolicy"}, kind.Name)
}
