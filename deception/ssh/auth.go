package ssh

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	xssh "golang.org/x/crypto/ssh"

	"bocage.dev/bocage"
)

// Delays of refusals. PAM holds a wrong password for two seconds, a quarter
// more or less (pam_fail_delay of pam_unix); sshd any refusal for some
// milliseconds that depend on the user (user_specific_delay).
const (
	passwordDelay = 2 * time.Second
	refusalDelay  = 5 * time.Millisecond
)

// Bounds of what one login may carry.
const (
	maxUser     = 1024
	maxPassword = 1024 // OpenSSH's limit too
)

// authenticate serves RFC 4252 as sshd does: the service first, then requests,
// each recorded, and refused until there were too many or the doorman nods. It
// gives the user who is in.
func (c *session) authenticate(ctx context.Context) (user string, err error) {
	if err := c.acceptService(); err != nil {
		return "", err
	}
	var first *loginRequest
	for failures, attempt := 0, 1; ; attempt++ {
		message, sequence, err := c.wire.read()
		if err != nil {
			return "", err
		}
		if message[0] != msgUserauthReq {
			if err := c.wire.unimplemented(sequence); err != nil {
				return "", err
			}
			continue
		}
		request, err := parseLogin(message)
		if err != nil {
			return "", err
		}
		if first == nil {
			first = request
		}
		if request.service != "ssh-connection" || request.service != first.service || request.user != first.user {
			return "", disconnect{fmt.Sprintf("Change of username or service not allowed: (%s,%s) -> (%s,%s)",
				first.user, first.service, request.user, request.service)}
		}
		if request.method == "password" && c.mayEnter() && c.server.doorman.admits(c.source, request.user, request.password) {
			c.reportLogin(request, "accepted")
			return request.user, c.wire.write([]byte{msgUserauthSuccess})
		}
		c.reportLogin(request, "refused")
		if err := pause(ctx, c.refusalTime(request, attempt)); err != nil {
			return "", err
		}
		// The first "none" only asks what there is.
		if request.method != "none" || attempt > 1 {
			failures++
		}
		if failures >= maxAuthTries {
			return "", disconnect{"Too many authentication failures"}
		}
		if err := c.refuse(); err != nil {
			return "", err
		}
	}
}

func (c *session) acceptService() error {
	for {
		message, sequence, err := c.wire.read()
		if err != nil {
			return err
		}
		if message[0] != msgServiceRequest {
			if err := c.wire.unimplemented(sequence); err != nil {
				return err
			}
			continue
		}
		s := cryptobyte.String(message[1:])
		service, ok := readString(&s)
		if !ok || !s.Empty() {
			return errCorrupt
		}
		if string(service) != "ssh-userauth" {
			return disconnect{fmt.Sprintf("bad service request %s", service)}
		}
		return c.wire.write(append([]byte{msgServiceAccept}, encodeString(service)...))
	}
}

// refuse is USERAUTH_FAILURE with what can continue.
func (c *session) refuse() error {
	var b cryptobyte.Builder
	b.AddUint8(msgUserauthFail)
	addString(&b, []byte(c.server.profile.methods))
	b.AddUint8(0) // no partial success
	return c.wire.write(b.BytesOrPanic())
}

// loginRequest is one USERAUTH_REQUEST.
type loginRequest struct {
	user, service, method string
	password              string // of the method password
	keyType               string // of the method publickey
	keyBlob               []byte
	signed                bool // the client proved to have the key's other half
}

func parseLogin(message []byte) (*loginRequest, error) {
	s := cryptobyte.String(message[1:])
	user, ok1 := readString(&s)
	service, ok2 := readString(&s)
	method, ok3 := readString(&s)
	if !ok1 || !ok2 || !ok3 || len(user) > maxUser {
		return nil, errCorrupt
	}
	r := &loginRequest{user: string(user), service: string(service), method: string(method)}
	var flag uint8
	switch r.method {
	case "password":
		if !s.ReadUint8(&flag) {
			return nil, errCorrupt
		}
		password, ok := readString(&s)
		if !ok || len(password) > maxPassword {
			return nil, errCorrupt
		}
		r.password = string(password)
	case "publickey", "publickey-hostbound-v00@openssh.com":
		if !s.ReadUint8(&flag) {
			return nil, errCorrupt
		}
		algorithm, ok1 := readString(&s)
		blob, ok2 := readString(&s)
		if !ok1 || !ok2 {
			return nil, errCorrupt
		}
		r.method, r.keyType, r.keyBlob, r.signed = "publickey", string(algorithm), blob, flag != 0
	}
	return r, nil
}

// mayEnter says whether we could serve the client if it got in: compression
// would begin then, and we have none.
func (c *session) mayEnter() bool { return c.suite.squeeze == [2]string{"none", "none"} }

// reportLogin tells an attempt. The question what methods there are is none.
func (c *session) reportLogin(r *loginRequest, outcome string) {
	detail := map[string]string{"user": r.user, "method": r.method, "outcome": outcome}
	switch r.method {
	case "none":
		return
	case "password":
		detail["password"] = r.password
	case "publickey":
		detail["keyType"] = r.keyType
		if key, err := xssh.ParsePublicKey(r.keyBlob); err == nil {
			detail["key"] = xssh.FingerprintSHA256(key)
		} else {
			sum := sha256.Sum256(r.keyBlob)
			detail["key"] = fmt.Sprintf("unreadable, SHA-256 %x", sum)
		}
	}
	c.report(bocage.DepthLogin, detail)
}

// refusalTime is how long sshd would take. It varies as PAM's does, but the same
// attempt takes the same time twice: variance that can be averaged away is a
// mark of its own.
func (c *session) refusalTime(r *loginRequest, attempt int) time.Duration {
	mac := hmac.New(sha256.New, c.server.keys.secret)
	fmt.Fprintf(mac, "delay %s %s %s %d", c.victim, r.user, r.method, attempt)
	random := binary.BigEndian.Uint32(mac.Sum(nil))
	if r.method == "password" {
		d := c.server.delay
		return d*3/4 + d/2*time.Duration(random>>16)/(1<<16)
	}
	return refusalDelay + refusalDelay*time.Duration(random>>16)/(1<<16)
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
