package api

import (
	"context"
	"crypto/x509"
	"maps"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
	"bocage.dev/bocage/identity"
)

type peerKey struct{}

// withPeer notes the credentials of the process at the other end of a unix
// socket, which the kernel vouches for.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return ctx
	}
	var credentials *unix.Ucred
	err = raw.Control(func(fd uintptr) {
		if u, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			credentials = u
		}
	})
	if err != nil || credentials == nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, credentials)
}

// authenticate finds out who makes a request, and what they may do. A bearer
// token counts before the connection's own credentials, so that an administrator
// can act as somebody with less.
func (s *Server) authenticate(r *http.Request) (Person, error) {
	if content(r) {
		r = r.WithContext(context.WithValue(r.Context(), contentKey{}, true))
	}
	p, err := s.identify(r)
	if err != nil {
		return Person{}, err
	}
	if p, err = s.withBindings(r.Context(), p); err != nil {
		return Person{}, err
	}
	if len(p.Grants) == 0 {
		return p, newProblem(http.StatusForbidden, metav1.StatusReasonForbidden,
			"%s has no role here: an administrator gives one with a RoleBinding that names %s among its subjects", p.Name, p.subjects())
	}
	return p, nil
}

// asThemselves refuses who asks to be taken for somebody else: they would be served as
// who they are, and take that for what the other may do.
func (c *call) asThemselves() error {
	const header = "Impersonate-"
	for _, name := range slices.Sorted(maps.Keys(c.r.Header)) {
		if strings.HasPrefix(name, header) {
			other := strings.Join(c.r.Header[name], ", ")
			return newProblem(http.StatusForbidden, metav1.StatusReasonForbidden, "%s cannot act as %s: %s is not supported, use a credential of theirs",
				c.person.Name, other[:min(len(other), 253)], name[:min(len(name), 253)])
		}
	}
	return nil
}

// subjects names a person as a RoleBinding could.
func (p Person) subjects() string {
	names := []string{strconv.Quote(p.Name)}
	for _, group := range p.Groups[:min(len(p.Groups), 10)] {
		names = append(names, strconv.Quote(bocage.GroupSubject+group))
	}
	return strings.Join(names, " or ")
}

// identify finds out who makes a request by the one credential that counts.
func (s *Server) identify(r *http.Request) (Person, error) {
	if header := r.Header.Get("Authorization"); header != "" {
		token, ok := strings.CutPrefix(header, "Bearer ")
		if !ok {
			return Person{}, unauthorized("the Authorization header is no bearer token")
		}
		if strings.Contains(token, ".") {
			return s.signedOn(r.Context(), token)
		}
		return s.session(r.Context(), token)
	}
	if peer, ok := r.Context().Value(peerKey{}).(*unix.Ucred); ok {
		return localPerson(peer)
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		// Verified again for each request: a connection does not outlive its
		// certificate.
		id, err := s.config.Bundle.Verify(r.TLS.PeerCertificates, s.config.Now())
		if err != nil {
			return Person{}, unauthorized("the client certificate is not accepted: %v", err)
		}
		if !forClients(r.TLS.PeerCertificates[0]) {
			return Person{}, unauthorized("the client certificate is not accepted: its extended key usage does not have clientAuth")
		}
		return certifiedPerson(id, identity.Groups(r.TLS.PeerCertificates[0])), nil
	}
	return Person{}, unauthorized("nobody is named: use the unix socket on a controller's host, a client certificate (--certificate) or a bearer token (--token-file, or `bocage login`)")
}

func unauthorized(format string, args ...any) *problem {
	return newProblem(http.StatusUnauthorized, metav1.StatusReasonUnauthorized, format, args...)
}

// forClients says whether its issuer lets a certificate speak for a client: one that says
// nothing of what it is for may be used for everything (RFC 5280 section 4.2.1.12).
func forClients(leaf *x509.Certificate) bool {
	return len(leaf.ExtKeyUsage) == 0 && len(leaf.UnknownExtKeyUsage) == 0 ||
		slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// localPerson is root, or whoever runs this very process: both could read its
// memory anyway.
func localPerson(peer *unix.Ucred) (Person, error) {
	name := strconv.Itoa(int(peer.Uid))
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	if peer.Uid != 0 && int(peer.Uid) != os.Getuid() {
		return Person{}, newProblem(http.StatusForbidden, metav1.StatusReasonForbidden,
			"the local socket is for root: log in with a token, or use a client certificate")
	}
	return Person{Name: localName + name, Grants: []Grant{{Role: RoleAdmin}}}, nil
}

// certifiedPerson reads a role from a SPIFFE id: /admin/NAME, /policy-admin/NAME,
// /responder/NAME, /auditor/NAME, /viewer/NAME or /owner/NAMESPACE/NAME. Others,
// people at /user/NAME, who may be in groups, and a workload that deploys, have the
// roles that RoleBindings give them; agents and controllers have no business here.
func certifiedPerson(id string, groups []string) Person {
	p := Person{Name: id}
	_, path, _ := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/")
	parts := strings.Split(path, "/")
	switch role := Role(parts[0]); {
	case parts[0] == "user":
		p.Groups = groups
	case len(parts) == 2 && role != RoleOwner && slices.Contains(bocage.Roles(), role):
		p.Grants = []Grant{{Role: role}}
	case len(parts) == 3 && role == RoleOwner:
		p.Grants = []Grant{{Role: role, Namespaces: parts[1:2]}}
	}
	return p
}
