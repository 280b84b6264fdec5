package admission

import (
	"log/slog"
	"net/netip"
	"time"

	"keelson.dev/services/apiserver/internal/request"
)

// Config configures the default chain.
type Config struct {
	State      State
	Authorizer Authorizer
	Escalation Escalation
	// NodeOf returns the name of the node that a user represents.
	NodeOf func(request.User) (name string, isNode bool)
	// ReservedNames are common names that no certificate request may use.
	ReservedNames []string
	// NotReadySeconds and UnreachableSeconds are how long pods tolerate such nodes by default.
	NotReadySeconds, UnreachableSeconds int64
	// PodSecurity lists what is exempt from the Pod Security Standards.
	PodSecurity Exemptions
	// Services is the range of cluster IPs; DenyExternalIPs refuses all external IPs.
	Services        netip.Prefix
	DenyExternalIPs bool
	// Log receives violations of the audit level. nil means slog.Default().
	Log *slog.Logger
}

// accountWait is within the 0.9 to 1.8 s that Kubernetes waits.
const accountWait = 1500 * time.Millisecond

// Default returns the plugins that every cluster runs, in Kubernetes' order.
func Default(c Config) *Chain {
	lifecycle := &NamespaceLifecycle{State: c.State}
	priority := &Priority{State: c.State}
	limits := &LimitRanger{State: c.State}
	classes := &RuntimeClass{State: c.State}
	certificates := &Certificates{State: c.State, Authorizer: c.Authorizer, Reserved: c.ReservedNames}
	return &Chain{
		Mutators: []Mutator{
			lifecycle,
			limits,
			&ServiceAccount{State: c.State, Wait: accountWait},
			NodeTaint{},
			priority,
			&DefaultTolerationSeconds{NotReady: c.NotReadySeconds, Unreachable: c.UnreachableSeconds},
			StorageProtection{},
			certificates,
			&DefaultStorageClass{State: c.State},
			&DefaultIngressClass{State: c.State},
			classes,
			&PodTopology{State: c.State},
		},
		Validators: []Validator{
			lifecycle,
			limits,
			&NodeRestriction{State: c.State, Authorizer: c.Authorizer, NodeOf: c.NodeOf},
			priority,
			NewPodSecurity(c.State, c.PodSecurity, c.Log),
			&ExternalIPs{State: c.State, Services: c.Services, Deny: c.DenyExternalIPs},
			&ClaimResize{State: c.State},
			&PodResize{State: c.State},
			classes,
			certificates,
			&RBAC{Escalation: c.Escalation},
		},
	}
}
