package bocage

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// RoleBinding gives people a role. Only administrators write it.
type RoleBinding struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       RoleBindingSpec `json:"spec"`
}

// RoleBindingSpec is the declaration.
type RoleBindingSpec struct {
	// Role is admin, policy-admin, responder, owner, auditor or viewer.
	Role Role `json:"role"`
	// Namespaces are those of an owner, who needs them, or of a viewer, who
	// without them sees everything. Other roles have none.
	Namespaces []string `json:"namespaces,omitempty"`
	// Subjects are who has the role: names of people as their provider tells
	// them, such as alice@example.org, groups as "group:NAME", or SPIFFE ids.
	Subjects []string `json:"subjects"`
}

// Role is what a person may do, in broad terms; the api room says exactly.
type Role string

// Roles.
const (
	RoleAdmin       Role = "admin"        // everything that people may do
	RolePolicyAdmin Role = "policy-admin" // reads all, and writes what the company demands, and rolls it out
	RoleResponder   Role = "responder"    // reads all, and writes quarantines, threat conditions and incidents' phases
	RoleOwner       Role = "owner"        // reads some namespaces and what binds them, and writes the contracts there
	RoleAuditor     Role = "auditor"      // reads all and the audit trail, and writes nothing
	RoleViewer      Role = "viewer"       // reads all, or what an owner of some namespaces reads
)

// Roles lists every role, the one that may do most first.
func Roles() []Role {
	return []Role{RoleAdmin, RolePolicyAdmin, RoleResponder, RoleOwner, RoleAuditor, RoleViewer}
}

// GroupSubject begins the subject that stands for a group.
const GroupSubject = "group:"

var subjectForm = regexp.MustCompile(`^[\x21-\x7e\p{L}\p{N}]([\x20-\x7e\p{L}\p{N}]{0,250}[\x21-\x7e\p{L}\p{N}])?$`)

// Validate implements Resource.
func (b *RoleBinding) Validate() Faults {
	faults := validateMeta(&b.ObjectMeta, false)
	faults = append(faults, ValidateRole(b.Spec.Role, b.Spec.Namespaces).Under("spec")...)
	if len(b.Spec.Subjects) == 0 {
		faults.Add("spec.subjects", "is empty: name at least one person or group")
	}
	for i, subject := range b.Spec.Subjects {
		at := fmt.Sprintf("spec.subjects[%d]", i)
		name, isGroup := strings.CutPrefix(subject, GroupSubject)
		switch {
		case !subjectForm.MatchString(name):
			faults.Add(at, "%q is not a person's name, group:NAME or a SPIFFE id, of at most 252 characters", subject)
		case !isGroup && (strings.HasPrefix(name, "token:") || strings.HasPrefix(name, "local:") || strings.HasPrefix(name, "bootstrap:") || strings.HasPrefix(name, "system:")):
			faults.Add(at, "%q has the role that it was made with: bind the person who made it", subject)
		case slices.Contains(b.Spec.Subjects[:i], subject):
			faults.Add(at, "%q is named twice", subject)
		}
	}
	return faults
}

// ValidateRole says what is wrong with a role and its namespaces.
func ValidateRole(role Role, namespaces []string) Faults {
	var faults Faults
	switch {
	case !slices.Contains(Roles(), role):
		faults.Add("role", "%q is not admin, policy-admin, responder, owner, auditor or viewer", role)
	case role == RoleOwner && len(namespaces) == 0:
		faults.Add("namespaces", "is empty: an owner has at least one namespace")
	case role != RoleOwner && role != RoleViewer && len(namespaces) > 0:
		faults.Add("namespaces", "narrow an owner or a viewer only: a %s has none", role)
	}
	for i, namespace := range namespaces {
		if !isDNSLabel(namespace) {
			faults.Add(fmt.Sprintf("namespaces[%d]", i), "%q is not a lower-case DNS label of at most 63 characters", namespace)
		}
	}
	return faults
}
