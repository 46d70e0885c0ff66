package compile

import (
	"net/netip"

	"bocage.dev/bocage"
)

// kubeRule is what one rule of a Kubernetes policy, or the lack of any, says of
// one end of the cells that its statement covers.
type kubeRule struct{}

// kubeVerdict is what Kubernetes' policies together say of a cell.
type kubeVerdict uint8

const (
	kubeSilent    kubeVerdict = iota // they neither allow nor stand in the way
	kubeAllows                       // both ends agree
	kubeRefuses                      // an Admin-tier Deny: no contract opens it
	kubeWithholds                    // isolation or a Baseline Deny keep them from allowing it
)

// judgeKubernetes combines the kube statements that cover one cell: what they
// come to, and the rules that decided.
func judgeKubernetes(covering []*statement) (kubeVerdict, []bocage.Ref) {
	return kubeSilent, nil
}

// stateKubernetes states what Kubernetes' policies say.
func (c *compiler) stateKubernetes() {}

// askKubernetes notes what the policies ask about workloads, so that those who
// answer differently are told apart.
func (in *admitted) askKubernetes(q *asked) {}

// eachKubernetesPrefix visits the blocks of addresses that the policies name.
func (in *admitted) eachKubernetesPrefix(visit func(netip.Prefix)) {}
