package bocage

import (
	"encoding/json"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
)

// APIVersion is the group and version of every kind of our own.
const APIVersion = "bocage.dev/v1"

// Resource is a declaration or an inventory entry in the Kubernetes dialect:
// apiVersion, kind, metadata, spec and status.
type Resource interface {
	// Type returns the apiVersion and kind, for reading and writing.
	Type() *TypeMeta
	// Meta returns the metadata, for reading and writing.
	Meta() *ObjectMeta
	// Validate returns every fault of the object by itself: what another object
	// says is not its business. It never changes the object.
	Validate() Faults
}

// TypeMeta names an object's schema.
type TypeMeta struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
}

// Type implements Resource.
func (t *TypeMeta) Type() *TypeMeta { return t }

// ObjectMeta is the part of Kubernetes' ObjectMeta that this system honours.
type ObjectMeta struct {
	Name string `json:"name"`
	// GenerateName is what a name begins with that the API draws.
	GenerateName      string            `json:"generateName,omitempty"`
	Namespace         string            `json:"namespace,omitempty"`
	UID               string            `json:"uid,omitempty"`
	ResourceVersion   string            `json:"resourceVersion,omitempty"`
	Generation        int64             `json:"generation,omitempty"`
	CreationTimestamp *time.Time        `json:"creationTimestamp,omitempty"`
	DeletionTimestamp *time.Time        `json:"deletionTimestamp,omitempty"`
	Labels            map[string]string `json:"labels,omitempty"`
	Annotations       map[string]string `json:"annotations,omitempty"`
	Finalizers        []string          `json:"finalizers,omitempty"`
	OwnerReferences   []OwnerReference  `json:"ownerReferences,omitempty"`
	// ManagedFields is kept as written: only the api room reads it.
	ManagedFields json.RawMessage `json:"managedFields,omitempty"`
}

// Meta implements Resource.
func (m *ObjectMeta) Meta() *ObjectMeta { return m }

// NamespacedName returns "namespace/name", or the name of a cluster-wide object.
func (m *ObjectMeta) NamespacedName() string { return path.Join(m.Namespace, m.Name) }

// OwnerReference names the object that an object belongs to.
type OwnerReference struct {
	APIVersion         string `json:"apiVersion"`
	Kind               string `json:"kind"`
	Name               string `json:"name"`
	UID                string `json:"uid"`
	Controller         *bool  `json:"controller,omitempty"`
	BlockOwnerDeletion *bool  `json:"blockOwnerDeletion,omitempty"`
}

// SourceAnnotation carries the file and line that an object was declared in, so
// that explanations can lead back to it.
const SourceAnnotation = "bocage.dev/source"

// Condition is one dated statement about an object (Kubernetes API conventions).
type Condition struct {
	Type               string    `json:"type"`
	Status             string    `json:"status"` // True, False or Unknown
	ObservedGeneration int64     `json:"observedGeneration,omitempty"`
	LastTransitionTime time.Time `json:"lastTransitionTime"`
	Reason             string    `json:"reason"`
	Message            string    `json:"message"`
}

// Condition types.
const (
	ConditionAccepted = "Accepted" // the declaration makes sense together with the others
	ConditionCompiled = "Compiled" // it is part of a compiled generation
	ConditionProved   = "Proved"   // that generation's proofs hold
	ConditionTested   = "Tested"   // of a Generation: false where cases fail that did not keep it back
	ConditionEnforced = "Enforced" // every agent concerned has taken that generation
	ConditionDegraded = "Degraded" // something promised is not being kept
	ConditionReady    = "Ready"    // the thing works
	// Of a Generation: how it came into force, or why it did not or does no more. There
	// is none where it simply came, and made way for the next.
	ConditionRolledOut = "RolledOut"
	// Of a Host: whether every workload that it saw is in the inventory, and whether
	// an enforcement point stands in front of each.
	ConditionDiscovered = "Discovered"
	ConditionGoverned   = "Governed"
)

// SetCondition adds or replaces a condition by type. The transition time moves
// only when the status does.
func SetCondition(conditions []Condition, c Condition) []Condition {
	for i, old := range conditions {
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		conditions[i] = c
		return conditions
	}
	return append(conditions, c)
}

// Kind describes one kind of resource to everything that is generic over kinds.
type Kind struct {
	// APIVersion is the group and version that objects of the kind carry.
	APIVersion string
	// Later are versions of the group with the same fields: what files and clients say
	// in one of them is read as if it were said in APIVersion.
	Later      []string
	Name       string   // CamelCase singular
	Plural     string   // in paths
	Short      []string // what people type
	Namespaced bool
	// Writer is the one room that creates objects of the kind; the spec of
	// kinds that people write is the api room's.
	Writer string
	// New returns an empty object of the kind.
	New func() Resource
	// Columns are the printed columns after the name.
	Columns []Column
}

// Column is one printed column: a header and where its value is found.
type Column struct {
	Name string
	// Path is a dotted JSON path; "status.conditions[Enforced]" reads a
	// condition's status.
	Path string
	// Wide columns appear only on request.
	Wide bool
}

// Kinds lists every kind, in the order in which people meet them.
func Kinds() []Kind { return slices.Clone(everyKind()) }

// everyKind is the list that nobody changes, made once: every request asks for it.
var everyKind = sync.OnceValue(func() []Kind {
	kinds := []Kind{
		{Name: "Application", Plural: "applications", Short: []string{"app"}, Namespaced: true, Writer: "api",
			New: func() Resource { return new(Application) }, Columns: []Column{
				{"PROVIDES", "spec.provides[*].name", false}, {"CONSUMES", "spec.consumes[*].service", false},
				{"ACCEPTED", "status.conditions[Accepted]", false}, {"ENFORCED", "status.conditions[Enforced]", false}}},
		{Name: "Guardrail", Plural: "guardrails", Short: []string{"gr"}, Writer: "api",
			New: func() Resource { return new(Guardrail) }, Columns: []Column{
				{"ACCEPTED", "status.conditions[Accepted]", false}, {"PROVED", "status.conditions[Proved]", false},
				{"ENFORCED", "status.conditions[Enforced]", false}, {"DESCRIPTION", "spec.description", false}}},
		{Name: "Scope", Plural: "scopes", Writer: "api",
			New: func() Resource { return new(Scope) }, Columns: []Column{{"MODE", "spec.mode", false},
				{"ENFORCED", "status.conditions[Enforced]", false}}},
		{Name: "InspectionProfile", Plural: "inspectionprofiles", Short: []string{"profile"}, Writer: "api",
			New: func() Resource { return new(InspectionProfile) }, Columns: []Column{{"FAIL", "spec.failMode", false},
				{"ENFORCED", "status.conditions[Enforced]", false}}},
		{Name: "Decoy", Plural: "decoys", Writer: "api",
			New: func() Resource { return new(Decoy) }, Columns: []Column{{"PROTOCOL", "spec.protocol", false},
				{"PORT", "spec.port", false}, {"ENFORCED", "status.conditions[Enforced]", false}}},
		{Name: "Quarantine", Plural: "quarantines", Short: []string{"qt"}, Writer: "api",
			New: func() Resource { return new(Quarantine) }, Columns: []Column{{"WORKLOAD", "spec.workload", false},
				{"UNTIL", "spec.until", false}, {"ENFORCED", "status.conditions[Enforced]", false}, {"REASON", "spec.reason", false}}},
		{Name: "ThreatCondition", Plural: "threatconditions", Short: []string{"tc"}, Writer: "recognition",
			New: func() Resource { return new(ThreatCondition) }, Columns: []Column{{"WORKLOAD", "spec.workload", false},
				{"LEVEL", "spec.level", false}, {"EXPIRES", "spec.expires", false}, {"REASON", "spec.reason", false}}},
		{Name: "Incident", Plural: "incidents", Short: []string{"inc"}, Writer: "recognition",
			New: func() Resource { return new(Incident) }, Columns: []Column{{"SEVERITY", "status.severity", false},
				{"PHASE", "status.phase", false}, {"ENTITIES", "status.entities[*].name", false}, {"TITLE", "status.title", false}}},
		{Name: "Workload", Plural: "workloads", Short: []string{"wl"}, Namespaced: true, Writer: "api",
			New: func() Resource { return new(Workload) }, Columns: []Column{{"HOST", "spec.host", false},
				{"ADDRESSES", "spec.addresses[*]", false}, {"IDENTITY", "status.identity", false}, {"INTERFACE", "spec.interface", false},
				{"ASSURANCE", "status.assurance", false}, {"IMAGE", "status.image", false},
				{"VOUCHED-BY", "status.vouchedBy", true}, {"SPIFFE-ID", "status.spiffeID", true}}},
		{Name: "Host", Plural: "hosts", Writer: "node",
			New: func() Resource { return new(Host) }, Columns: []Column{{"GENERATION", "status.generation", false},
				{"READY", "status.conditions[Ready]", false}, {"LAST-SEEN", "status.lastSeen", false},
				{"KERNEL", "status.kernel", true}, {"VERSION", "status.version", true}}},
		{Name: "Generation", Plural: "generations", Short: []string{"gen"}, Writer: "policy",
			New: func() Resource { return new(Generation) }, Columns: []Column{{"NUMBER", "status.number", false},
				{"ACTIVE", "status.active", false}, {"RULES", "status.rules", false},
				{"STAGE", "status.stage", false}, {"PROVED", "status.conditions[Proved]", false}, {"COMPILED", "status.compiled", false}}},
		{Name: "Exception", Plural: "exceptions", Short: []string{"ex"}, Writer: "api",
			New: func() Resource { return new(Exception) }, Columns: []Column{{"GUARDRAIL", "spec.guardrail", false},
				{"UNTIL", "spec.until", false}, {"ACCEPTED", "status.conditions[Accepted]", false}, {"TICKET", "spec.ticket", false}}},
		{Name: "Response", Plural: "responses", Writer: "api",
			New: func() Resource { return new(Response) }, Columns: []Column{{"LEVEL", "spec.when.level", false},
				{"ENFORCED", "status.conditions[Enforced]", false}, {"DESCRIPTION", "spec.description", false}}},
		{Name: "PolicyTest", Plural: "policytests", Short: []string{"pt"}, Namespaced: true, Writer: "api",
			New: func() Resource { return new(PolicyTest) }, Columns: []Column{{"PASSED", "status.conditions[Ready]", false},
				{"FAILED", "status.failed[*]", false}}},
		{Name: "AddressGroup", Plural: "addressgroups", Short: []string{"ag"}, Writer: "api",
			New: func() Resource { return new(AddressGroup) }, Columns: []Column{{"ADDRESSES", "spec.addresses[*]", false}}},
		{Name: "Zone", Plural: "zones", Writer: "api",
			New: func() Resource { return new(Zone) }, Columns: []Column{{"HOSTS", "spec.hosts[*]", false}}},
		{Name: "Rollout", Plural: "rollouts", Writer: "api",
			New: func() Resource { return new(Rollout) }, Columns: []Column{{"STAGE", "status.stage", false},
				{"GENERATION", "status.generation", false}, {"DEADLINE", "status.deadline", false}}},
		{Name: "RoleBinding", Plural: "rolebindings", Short: []string{"rb"}, Writer: "api",
			New: func() Resource { return new(RoleBinding) }, Columns: []Column{{"ROLE", "spec.role", false},
				{"NAMESPACES", "spec.namespaces[*]", false}, {"SUBJECTS", "spec.subjects[*]", false}}},
		{APIVersion: NetworkPolicyAPIVersion, Name: "NetworkPolicy", Plural: "networkpolicies", Short: []string{"netpol"}, Namespaced: true, Writer: "api",
			New: func() Resource { return new(NetworkPolicy) }, Columns: []Column{{"TYPES", "spec.policyTypes[*]", false},
				{"ACCEPTED", "status.conditions[Accepted]", false}, {"ENFORCED", "status.conditions[Enforced]", false}}},
		{APIVersion: ClusterNetworkPolicyAPIVersion, Later: []string{ClusterNetworkPolicyLaterVersion}, Name: "ClusterNetworkPolicy", Plural: "clusternetworkpolicies", Short: []string{"cnp"}, Writer: "api",
			New: func() Resource { return new(ClusterNetworkPolicy) }, Columns: []Column{{"TIER", "spec.tier", false}, {"PRIORITY", "spec.priority", false},
				{"ACCEPTED", "status.conditions[Accepted]", false}, {"ENFORCED", "status.conditions[Enforced]", false}}},
		{APIVersion: NamespaceAPIVersion, Name: "Namespace", Plural: "namespaces", Short: []string{"ns"}, Writer: "api",
			New: func() Resource { return new(Namespace) }, Columns: []Column{{"STATUS", "status.phase", false}}},
		{APIVersion: ObjectEventAPIVersion, Name: "Event", Plural: "events", Short: []string{"ev"}, Namespaced: true, Writer: "policy",
			New: func() Resource { return new(ObjectEvent) }, Columns: []Column{{"LAST-SEEN", "lastTimestamp", false}, {"TYPE", "type", false},
				{"REASON", "reason", false}, {"OBJECT", "involvedObject.name", false}, {"MESSAGE", "message", false}}},
	}
	for i := range kinds {
		if kinds[i].APIVersion == "" {
			kinds[i].APIVersion = APIVersion
		}
	}
	return kinds
})

// Group returns the API group of the kind; empty is Kubernetes' core group.
func (k Kind) Group() string {
	group, _, found := strings.Cut(k.APIVersion, "/")
	if !found {
		return ""
	}
	return group
}

// Version returns the version within the group.
func (k Kind) Version() string {
	_, version, found := strings.Cut(k.APIVersion, "/")
	if !found {
		return k.APIVersion
	}
	return version
}

// Reads reports whether objects of a group and version can be read as the kind.
func (k Kind) Reads(apiVersion string) bool {
	return k.APIVersion == apiVersion || slices.Contains(k.Later, apiVersion)
}

// Versions lists the groups and versions in which objects of the kind are read and
// shown. They are kept in the first.
func (k Kind) Versions() []string { return append([]string{k.APIVersion}, k.Later...) }

// In is the kind in one of its versions.
func (k Kind) In(apiVersion string) Kind {
	k.APIVersion = apiVersion
	return k
}

// KindNamed finds a kind by name, plural, singular or short name, in any case.
func KindNamed(name string) (Kind, bool) {
	for _, k := range everyKind() {
		if equalFold(k.Name, name) || equalFold(k.Plural, name) {
			return k, true
		}
		for _, s := range k.Short {
			if equalFold(s, name) {
				return k, true
			}
		}
	}
	return Kind{}, false
}

// KeyPrefix is the store's prefix for all objects of a kind.
func (k Kind) KeyPrefix() string { return "resources/" + k.Plural + "/" }

// Key is the store's key of one object: namespaced objects have their namespace
// between the prefix and the name. Values are the object's JSON without
// resourceVersion, which is the store's revision.
func (k Kind) Key(namespace, name string) string {
	if k.Namespaced {
		return k.KeyPrefix() + namespace + "/" + name
	}
	return k.KeyPrefix() + name
}
