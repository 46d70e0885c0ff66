package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/audit"
)

// Person is who the server takes somebody for.
type Person struct {
	Name   string   `json:"name"`
	Groups []string `json:"groups,omitempty"`
	// Role is admin, policy-admin, responder, owner, auditor or viewer: of
	// several, the one that may do most.
	Role string `json:"role,omitempty"`
	// Namespaces are those that the person is held to; none is all of them.
	Namespaces []string `json:"namespaces,omitempty"`
	// Grants are all roles.
	Grants []Grant `json:"grants,omitempty"`
	// Maker is who made the token that the person came with.
	Maker string `json:"maker,omitempty"`
}

// Grant is a role with its namespaces; none is all of them.
type Grant struct {
	Role       string   `json:"role"`
	Namespaces []string `json:"namespaces,omitempty"`
	// Binding is the RoleBinding that gives it, if one does.
	Binding string `json:"binding,omitempty"`
}

// Session is a token with its bearer and its end.
type Session struct {
	Token   string    `json:"token,omitempty"`
	Person  Person    `json:"person"`
	Expires time.Time `json:"expires"`
}

// WhoAmI asks who the server takes this client for.
func (c *Client) WhoAmI(ctx context.Context) (Person, error) {
	var person Person
	err := c.do(ctx, request{method: http.MethodGet, path: functionsPath + "/whoami"}, &person)
	return person, err
}

// Login exchanges the one-time token, which the client's configuration holds,
// for an administrator's session.
func (c *Client) Login(ctx context.Context) (Session, error) {
	var session Session
	err := c.do(ctx, request{method: http.MethodPost, path: functionsPath + "/login"}, &session)
	return session, err
}

// CreateSession makes a token for somebody with roles: Role and Namespaces, and
// Grants beside. Nobody gives more than they have. ttl 0 is twelve hours.
func (c *Client) CreateSession(ctx context.Context, person Person, ttl time.Duration) (Session, error) {
	asked := map[string]any{"name": person.Name, "groups": person.Groups, "grants": person.Grants}
	if person.Role != "" {
		asked["role"], asked["namespaces"] = person.Role, person.Namespaces
	}
	body, err := json.Marshal(map[string]any{"person": asked, "ttlSeconds": int64(ttl / time.Second)})
	if err != nil {
		return Session{}, err
	}
	var session Session
	err = c.do(ctx, request{
		method: http.MethodPost, path: functionsPath + "/sessions", contentType: "application/json", body: body,
	}, &session)
	return session, err
}

// Certificate is a person's, as the controller made it.
type Certificate struct {
	ID      string    `json:"id"`
	Groups  []string  `json:"groups,omitempty"`
	Serial  string    `json:"serial"`
	Expires time.Time `json:"expires"`
	// Chain and Bundle are PEM: the certificate, and the anchors by which the
	// server is known.
	Chain  string `json:"chain"`
	Bundle string `json:"bundle"`
	// Roles are those that RoleBindings give the person now.
	Roles []Grant `json:"roles,omitempty"`
}

// CreateCertificate has the controller sign a certificate for a person, whose key
// made the request (PKCS#10, DER; see identity.NewKey). ttl 0 is a day.
func (c *Client) CreateCertificate(ctx context.Context, name string, groups []string, csr []byte, ttl time.Duration) (Certificate, error) {
	body, err := json.Marshal(map[string]any{"name": name, "groups": groups, "csr": csr, "ttlSeconds": int64(ttl / time.Second)})
	if err != nil {
		return Certificate{}, err
	}
	var made Certificate
	err = c.do(ctx, request{
		method: http.MethodPost, path: functionsPath + "/certificates", contentType: "application/json", body: body,
	}, &made)
	return made, err
}

// Sessions lists the sessions that there are, without their tokens: all of them
// for an administrator, else one's own.
func (c *Client) Sessions(ctx context.Context) ([]Session, error) {
	var sessions []Session
	err := c.do(ctx, request{method: http.MethodGet, path: functionsPath + "/sessions"}, &sessions)
	return sessions, err
}

// EndSessions ends every session of a name and those that were made with them,
// and says how many. Without a name it ends the client's own.
func (c *Client) EndSessions(ctx context.Context, name string) (int, error) {
	var answer struct {
		Ended int `json:"ended"`
	}
	err := c.do(ctx, request{
		method: http.MethodDelete, path: functionsPath + "/sessions", query: url.Values{"name": {name}},
	}, &answer)
	return answer.Ended, err
}

// Audit reads the controller's audit trail from an entry on and gives each to
// visit, in order.
func (c *Client) Audit(ctx context.Context, from uint64, visit func(audit.Entry) error) error {
	body, err := c.open(ctx, request{
		method: http.MethodGet, path: functionsPath + "/audit", query: url.Values{"from": {strconv.FormatUint(from, 10)}}, stream: true,
	})
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	for lines.Scan() {
		var line struct {
			audit.Entry
			Kind string `json:"kind"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return fmt.Errorf("read the audit trail: %w", err)
		}
		if line.Kind == "Status" {
			var s status
			if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
				return fmt.Errorf("read the audit trail: %w", err)
			}
			return s.err()
		}
		if err := visit(line.Entry); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read the audit trail: %w", err)
	}
	return nil
}

// AuditAnchors reads the newest hashes that the store has of the controllers'
// trails, and the name of the controller that answers.
func (c *Client) AuditAnchors(ctx context.Context) (node string, anchors map[string]audit.Anchor, err error) {
	var answer struct {
		Node    string                  `json:"node"`
		Anchors map[string]audit.Anchor `json:"anchors"`
	}
	err = c.do(ctx, request{method: http.MethodGet, path: functionsPath + "/anchors"}, &answer)
	return answer.Node, answer.Anchors, err
}

// Approve agrees to a generation of an object that waits for a second person; 0 is the
// object as it stands. It returns the object as it is then.
func (c *Client) Approve(ctx context.Context, kind bocage.Kind, namespace, name string, generation int64) (bocage.Resource, error) {
	return c.approve(ctx, kind, namespace, name, generation, false)
}

// ApproveDeletion agrees that an object goes whose deletion waits for a second person. It
// returns the object as it was last.
func (c *Client) ApproveDeletion(ctx context.Context, kind bocage.Kind, namespace, name string, generation int64) (bocage.Resource, error) {
	return c.approve(ctx, kind, namespace, name, generation, true)
}

func (c *Client) approve(ctx context.Context, kind bocage.Kind, namespace, name string, generation int64, deletion bool) (bocage.Resource, error) {
	path, err := objectPath(kind, namespace, name)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(struct {
		Generation int64 `json:"generation,omitempty"`
		Deletion   bool  `json:"deletion,omitempty"`
	}{generation, deletion})
	if err != nil {
		return nil, err
	}
	object := kind.New()
	return object, c.do(ctx, request{method: http.MethodPost, path: path + "/approval", contentType: "application/json", body: body}, object)
}
