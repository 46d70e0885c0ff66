// Package gather turns declarations from files into what the compiler takes, with
// no controller at hand: our own kinds, and Namespaces, Pods, Nodes and network
// policies as Kubernetes writes them.
//
// It promises every fault of every file at once, each with its file and line,
// and that whatever it leaves out or fills in is said in a note: foreign kinds,
// addresses of Pods that have none yet, numbers of workloads, defaults. The same
// files in any order give the same input.
//
// It never decides anything, and never writes.
package gather

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/kubernetes"
)

// Values of Options.Default.
const (
	DefaultAuto       = "auto"
	DefaultKubernetes = "kubernetes"
	DefaultDeny       = "deny"
	DefaultDeclared   = "declared"
)

// MaxBytes is the largest file that is read: a cluster's Pods in one piece.
const MaxBytes = 256 << 20

// Options say how files are read. The zero value is what people mean.
type Options struct {
	// Default says what becomes of flows about which nobody says anything:
	// "kubernetes" accepts those between any workloads, "deny" accepts none, not
	// even those between Pods. "auto" (or empty) accepts those between Pods, and
	// takes Workloads for Pods where there are Kubernetes' policies and none of
	// Bocage's own. "declared" takes nobody for what it is not declared to be, as a
	// controller does: flows between Pods are accepted, all others are not.
	Default string
	// Strict makes foreign kinds faults.
	Strict bool
}

// Gathered is what the files hold.
type Gathered struct {
	// Input has everything but Now.
	Input compile.Input
	Tests []*bocage.PolicyTest
	// Notes say, for people, what was left out or filled in.
	Notes []string
	// Names are what else can be named than workloads and hosts, with the
	// addresses: Pods on their node's network.
	Names map[string][]netip.Addr
	// Gone are names and addresses that mean nobody, with the reason.
	Gone map[string]string

	documents map[objectKey]manifest.Document
}

type objectKey struct{ kind, namespace, name string }

// Gatherer collects files.
type Gatherer struct {
	options Options
	reader  manifest.Reader
	faults  bocage.Faults
	out     Gathered
	pods    []kubernetes.Pod
	// templates are of controllers whose Pods may be in the files, or not.
	templates []template
	services  []service
	sources   map[objectKey]string // of workloads and hosts, by whatever kind declares them
	foreign   map[string][]string  // kinds that are not read, with where they stand
	own       bool                 // a policy of Bocage's own was declared
}

// New prepares to collect.
func New(options Options) *Gatherer {
	g := &Gatherer{options: options, sources: map[objectKey]string{}, foreign: map[string][]string{},
		out: Gathered{Names: map[string][]netip.Addr{}, Gone: map[string]string{}, documents: map[objectKey]manifest.Document{}}}
	g.reader = manifest.Reader{Namespace: "default", Foreign: g.foreigner, MaxBytes: MaxBytes}
	return g
}

// Path adds a file or a folder.
func (g *Gatherer) Path(path string) {
	g.faults = append(g.faults, g.reader.EachPath(path, g.document)...)
}

// Read adds what a stream held; name is the stream's, for messages.
func (g *Gatherer) Read(name string, data []byte) {
	g.faults = append(g.faults, g.reader.Each(name, data, g.document)...)
}

// document takes one object of a kind that is known.
func (g *Gatherer) document(d manifest.Document) {
	in := &g.out.Input
	counts := bocage.AsAgreed(d.Resource) // of an export, what somebody still has to agree to does not
	if counts == nil {
		g.note("%s %s is left out: it waits for a second person, and nothing was in force before", d.Resource.Type().Kind, d.Resource.Meta().Name)
		return
	}
	switch o := counts.(type) {
	case *bocage.Application:
		in.Applications, g.own = append(in.Applications, o), true
	case *bocage.Guardrail:
		in.Guardrails, g.own = append(in.Guardrails, o), true
	case *bocage.Exception:
		in.Exceptions, g.own = append(in.Exceptions, o), true
	case *bocage.Response:
		in.Responses, g.own = append(in.Responses, o), true
	case *bocage.Scope:
		in.Scopes, g.own = append(in.Scopes, o), true
	case *bocage.InspectionProfile:
		in.Profiles, g.own = append(in.Profiles, o), true
	case *bocage.Decoy:
		in.Decoys, g.own = append(in.Decoys, o), true
	case *bocage.Quarantine:
		in.Quarantines = append(in.Quarantines, o)
	case *bocage.ThreatCondition:
		in.ThreatConditions = append(in.ThreatConditions, o)
	case *bocage.AddressGroup:
		in.AddressGroups = append(in.AddressGroups, o)
	case *bocage.Zone:
		in.Zones = append(in.Zones, o)
	case *bocage.Namespace:
		in.Namespaces = append(in.Namespaces, o)
		return
	case *bocage.NetworkPolicy:
		in.NetworkPolicies = append(in.NetworkPolicies, o)
	case *bocage.ClusterNetworkPolicy:
		in.ClusterNetworkPolicies = append(in.ClusterNetworkPolicies, o)
	case *bocage.Workload:
		if faults := g.claim("Workload", &o.ObjectMeta, d.Source); len(faults) > 0 {
			g.faults = append(g.faults, faults...)
		} else {
			in.Workloads = append(in.Workloads, o)
		}
		return
	case *bocage.Host:
		if faults := g.claim("Host", &o.ObjectMeta, d.Source); len(faults) > 0 {
			g.faults = append(g.faults, faults...)
		} else {
			in.Hosts = append(in.Hosts, o)
		}
		return
	case *bocage.PolicyTest:
		g.out.Tests = append(g.out.Tests, o)
	default:
		return // records of the past and of the rollout decide nothing
	}
	meta := d.Resource.Meta()
	d.JSON = nil
	g.out.documents[objectKey{d.Resource.Type().Kind, meta.Namespace, meta.Name}] = d
}

// claim notes who has a name: a Pod and a Workload, or a Node and a Host, cannot
// both have one.
func (g *Gatherer) claim(kind string, meta *bocage.ObjectMeta, source string) bocage.Faults {
	k := objectKey{kind, meta.Namespace, meta.Name}
	if other, taken := g.sources[k]; taken {
		return bocage.Faults{{Field: "metadata.name", Source: source,
			Message: fmt.Sprintf("%s is the name of what is declared at %s already", meta.NamespacedName(), other)}}
	}
	g.sources[k] = source
	return nil
}

// foreigner takes one object of another kind.
func (g *Gatherer) foreigner(tree *manifest.Tree) bocage.Faults {
	version, _ := tree.Text("apiVersion")
	kind, _ := tree.Text("kind")
	source := tree.Source("")
	switch {
	case version == "v1" && kind == "Pod":
		pod, faults := kubernetes.ReadPod(tree.JSON())
		if len(faults) == 0 {
			faults = nameFaults(pod.Workload)
		}
		if len(faults) == 0 {
			faults = g.claim("Workload", &pod.ObjectMeta, source)
		}
		if len(faults) == 0 {
			pod.Annotations = map[string]string{bocage.SourceAnnotation: source}
			g.pods = append(g.pods, pod)
		}
		return faults
	case version == "v1" && kind == "Node":
		host, faults := kubernetes.ReadNode(tree.JSON())
		if len(faults) == 0 {
			faults = host.Validate()
		}
		if len(faults) == 0 {
			faults = g.claim("Host", &host.ObjectMeta, source)
		}
		if len(faults) == 0 {
			host.Annotations = map[string]string{bocage.SourceAnnotation: source}
			g.out.Input.Hosts = append(g.out.Input.Hosts, host)
		}
		return faults
	case kubernetes.IsController(version, kind):
		read, faults := kubernetes.ReadTemplate(tree.JSON())
		if len(faults) == 0 {
			faults = nameFaults(read.Workload)
		}
		if len(faults) == 0 {
			g.templates = append(g.templates, template{read, source})
		}
		return faults
	case g.options.Strict:
		var faults bocage.Faults
		faults.Add("kind", "%s (%s) is not read here: remove it, or leave out --strict", kind, version)
		return faults
	}
	if version == "v1" && kind == "Service" {
		g.service(tree)
	}
	g.foreign[kind] = append(g.foreign[kind], source)
	return nil
}

// nameFaults checks a Pod's name, namespace and labels; a Workload's other rules
// are not Kubernetes'.
func nameFaults(w *bocage.Workload) bocage.Faults {
	var faults bocage.Faults
	for _, f := range w.Validate() {
		if strings.HasPrefix(f.Field, "metadata.") {
			faults = append(faults, f)
		}
	}
	return faults
}

// Done returns what was collected, or every fault.
func (g *Gatherer) Done() (*Gathered, bocage.Faults) {
	switch g.options.Default {
	case "", DefaultAuto, DefaultKubernetes, DefaultDeny, DefaultDeclared:
	default:
		g.faults.Add("", "default %q is none of %s, %s, %s and %s", g.options.Default, DefaultAuto, DefaultKubernetes, DefaultDeny, DefaultDeclared)
	}
	if len(g.faults) > 0 {
		return nil, g.faults
	}
	g.noteForeign()
	g.standIn()
	g.place()
	g.number()
	g.behindServices()
	g.defaults()
	g.noteExceptions()
	return &g.out, nil
}

func (g *Gatherer) note(format string, args ...any) {
	g.out.Notes = append(g.out.Notes, fmt.Sprintf(format, args...))
}

// noteForeign says what was left out.
func (g *Gatherer) noteForeign() {
	kinds := make([]string, 0, len(g.foreign))
	for kind := range g.foreign {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	for _, kind := range kinds {
		sources := g.foreign[kind]
		why := "it is none of the kinds that decide about flows here"
		switch {
		case kind == "Service":
			why = "policies are about the workloads behind a Service: name those"
		case decidesElsewhere(kind):
			why = "WHAT IT DECIDES IS NOT SIMULATED, for its kind is not known here"
		}
		g.note("%d %s left out (%s): %s", len(sources), kind, sources[0], why)
	}
}

// decidesElsewhere reports whether a kind decides about flows wherever it is known,
// as far as its name says: others' policies, and OpenShift's and Consul's.
func decidesElsewhere(kind string) bool {
	return strings.Contains(strings.ToLower(kind), "polic") || kind == "EgressFirewall" || kind == "ServiceIntentions"
}

// noteExceptions says which exceptions count although somebody has to approve
// them: files know nothing of approvals.
func (g *Gatherer) noteExceptions() {
	approvers := map[string][]string{}
	for _, r := range g.out.Input.Guardrails {
		approvers[r.Name] = r.Spec.Exceptions.Approvers
	}
	for _, e := range g.out.Input.Exceptions {
		if who := approvers[e.Spec.Guardrail]; len(who) > 0 && e.Status.Approval == nil {
			g.note("Exception %s counts as approved: in force it waits for %s", e.Name, strings.Join(who, " or "))
		}
	}
}

// defaults says what becomes of flows about which nobody says anything.
func (g *Gatherer) defaults() {
	in := &g.out.Input
	orchestrator, only := "", ""
	switch g.options.Default {
	case DefaultDeclared:
		return
	case DefaultKubernetes:
		orchestrator = bocage.OrchestratorKubernetes
	case DefaultDeny:
		only = bocage.OrchestratorKubernetes // Pods become workloads like others
	default:
		if g.own || len(in.NetworkPolicies)+len(in.ClusterNetworkPolicies) == 0 ||
			!slices.ContainsFunc(in.Workloads, func(w *bocage.Workload) bool { return w.Spec.Orchestrator == "" }) {
			return
		}
		orchestrator = bocage.OrchestratorKubernetes
		g.note("there are Kubernetes' policies and none of Bocage's: Workloads count as Pods, whose flows are accepted unless a policy says otherwise (--default deny to have them refused)")
	}
	for i, w := range in.Workloads {
		if w.Spec.Orchestrator == only && w.Spec.Orchestrator != orchestrator {
			copied := *w
			copied.Spec.Orchestrator = orchestrator
			in.Workloads[i] = &copied
		}
	}
}

// number gives workloads without a number one that nobody has, in the order of
// their names.
func (g *Gatherer) number() {
	workloads := g.out.Input.Workloads
	slices.SortFunc(workloads, func(a, b *bocage.Workload) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	next := bocage.IdentityFirst
	for _, w := range workloads {
		next = max(next, w.Status.Identity+1)
	}
	for i, w := range workloads {
		if w.Status.Identity < bocage.IdentityFirst {
			copied := *w
			copied.Status.Identity, next = next, next+1
			workloads[i] = &copied
		}
	}
}

// Place finds the file and line of a field. Of what did not come from a file it
// is empty.
func (g *Gathered) Place(ref bocage.Ref) (file string, line int) {
	source := ref.Source
	if d, known := g.documents[objectKey{ref.Kind, ref.Namespace, ref.Name}]; known {
		source = d.Place(bocage.Faults{{Field: ref.Field}})[0].Source
	}
	if i := strings.LastIndexByte(source, ':'); i >= 0 {
		if line, err := strconv.Atoi(source[i+1:]); err == nil {
			return source[:i], line
		}
	}
	return source, 0
}
