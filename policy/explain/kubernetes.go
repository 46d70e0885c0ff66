package explain

import (
	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// KubernetesSay is what policies in Kubernetes' own words say of a flow.
type KubernetesSay struct {
	// Allows says that they allow it, By which of them; none where nothing but
	// the default of pods does.
	Allows bool
	By     []bocage.Ref
	// Denies are rules of the Admin tier, which nobody below can reopen.
	Denies []bocage.Ref
	// Withholds are isolations and rules of the Baseline tier: they allow nothing,
	// and refuse nothing that somebody else allows.
	Withholds []bocage.Ref
}

type kubernetes struct{}

func newKubernetes(compile.Input) kubernetes { return kubernetes{} }

func (kubernetes) say(_, _ party, _ bocage.Flow) KubernetesSay { return KubernetesSay{} }
