package api

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
)

// Client certificates for people say who somebody is and nothing else: what they
// may do RoleBindings say, at every request, so that a role can be taken back
// while the certificate lives. The key is made where it is used; the controller
// sees only the request that proves its possession.

const (
	defaultCertificate = 24 * time.Hour
	longestCertificate = 7 * 24 * time.Hour
	groupsAtMost       = 32
)

var (
	userName  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	groupName = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9._@/:]{0,62}[A-Za-z0-9])?$`)
)

// Certificate is what somebody got.
type Certificate struct {
	ID      string    `json:"id"`
	Groups  []string  `json:"groups,omitempty"`
	Serial  string    `json:"serial"`
	Expires time.Time `json:"expires"`
	// Chain is the certificate and those that vouch for it, Bundle the anchors by
	// which the server is known, both in PEM.
	Chain  string `json:"chain"`
	Bundle string `json:"bundle"`
	// Roles are those that RoleBindings give now.
	Roles []Grant `json:"roles,omitempty"`
}

// makeCertificate gives a person a name to come with. Only whoever has the machine
// vouches for others: who could make themselves another name would be a second
// person, too.
func (s *Server) makeCertificate(c *call) error {
	c.outcome = "refused"
	if !c.person.aboveAll() {
		return newProblem(http.StatusForbidden, metav1.StatusReasonForbidden,
			"User %q cannot make certificates: who vouches for others could agree with themselves under another name, so root on a controller's host makes them", c.person.Name)
	}
	var request struct {
		Name       string   `json:"name"`
		Groups     []string `json:"groups"`
		TTLSeconds int64    `json:"ttlSeconds"`
		CSR        []byte   `json:"csr"` // PKCS#10, DER
	}
	if err := c.readJSON(&request); err != nil {
		return err
	}
	var faults bocage.Faults
	if !userName.MatchString(request.Name) {
		faults.Add("name", "%q is not a lower-case DNS label of at most 63 characters: it becomes the end of a SPIFFE id", request.Name)
	}
	if len(request.Groups) > groupsAtMost {
		faults.Add("groups", "are more than %d", groupsAtMost)
	}
	for i, group := range request.Groups[:min(len(request.Groups), groupsAtMost)] {
		at := fmt.Sprintf("groups[%d]", i)
		switch {
		case !groupName.MatchString(group):
			faults.Add(at, "%q is not a group's name of at most 64 letters, digits and -._@/:", group)
		case slices.Contains(request.Groups[:i], group):
			faults.Add(at, "%q is named twice", group)
		}
	}
	if _, err := x509.ParseCertificateRequest(request.CSR); err != nil {
		faults.Add("csr", "is no certificate request in DER: %v", err)
	}
	ttl := readTTL(&faults, request.TTLSeconds, defaultCertificate, longestCertificate)
	if err := queryFaults(faults); err != nil {
		return err
	}
	if s.config.Functions.Certificate == nil || s.config.Bundle == nil {
		return notWired("issue certificates")
	}
	path := "/user/" + request.Name
	chain, err := s.config.Functions.Certificate(c.r.Context(), path, request.Groups, request.CSR, ttl)
	if err != nil {
		return badRequest("%v", err)
	}
	leaf, err := leafOf(chain)
	if err != nil {
		return err
	}
	made := Certificate{ID: "spiffe://" + s.config.TrustDomain + path, Groups: request.Groups, Serial: leaf.SerialNumber.Text(16),
		Expires: leaf.NotAfter.UTC(), Chain: string(chain), Bundle: string(s.config.Bundle.MarshalPEM())}
	if made.Roles, err = s.bindings.of(c.r.Context(), Person{Name: made.ID, Groups: made.Groups}); err != nil {
		return err
	}
	c.name = made.ID
	c.outcome = fmt.Sprintf("certificate %s in groups %v until %s", made.Serial, made.Groups, made.Expires.Format(time.RFC3339))
	writeJSON(c.w, http.StatusCreated, made)
	return nil
}

func leafOf(chainPEM []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(chainPEM)
	if block == nil {
		return nil, errors.New("the authority answered with no certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}
