package podautoscaler

import (
	"math"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
)

// limited is a number within limits, and the condition ScalingLimited that explains it.
type limited struct {
	replicas        int32
	reason, message string
}

const (
	reasonUpLimit   = "ScaleUpLimit"
	messageUpLimit  = "the desired replica count is increasing faster than the maximum scale rate"
	messageTooMany  = "the desired replica count is more than the maximum replica count"
	messageTooFew   = "the desired replica count is less than the minimum replica count"
	messageDownRate = "the desired replica count is decreasing faster than the maximum scale rate"
)

// limit applies stabilization, the limits of rates and the bounds of the spec to the number
// that the metrics demand.
func (p *planner) limit(wanted int32) int32 {
	var stable int32
	var reason, message string
	if behavior := p.HPA.Spec.Behavior; behavior != nil {
		stable, reason, message = p.stabilize(wanted, behavior)
	} else {
		_, stable = p.d.History.since(p.Now.Add(-p.Options.DownscaleStabilization), wanted)
		reason, message = "ScaleDownStabilized", "recent recommendations were higher than current one, applying the highest recent recommendation"
	}
	p.d.History.recommend(wanted, p.Now)
	if stable == wanted {
		reason, message = "ReadyForNewScale", "recommended size matches current size"
	}
	p.condition(autoscalingv2.AbleToScale, corev1.ConditionTrue, reason, message)
	var out limited
	if behavior := p.HPA.Spec.Behavior; behavior != nil {
		out = p.byPolicies(stable, behavior)
	} else {
		out = p.byDefault(stable)
	}
	status := corev1.ConditionFalse
	if out.replicas != stable {
		status = corev1.ConditionTrue
	}
	p.condition(autoscalingv2.ScalingLimited, status, out.reason, out.message)
	return out.replicas
}

// stabilize keeps the present number between the lowest and the highest recommendation of the
// two windows.
func (p *planner) stabilize(wanted int32, b *autoscalingv2.HorizontalPodAutoscalerBehavior) (stable int32, reason, message string) {
	lowest, _ := p.d.History.since(p.Now.Add(-window(b.ScaleUp, 0)), wanted)
	_, highest := p.d.History.since(p.Now.Add(-window(b.ScaleDown, p.Options.DownscaleStabilization)), wanted)
	stable = min(max(p.d.current, lowest), highest)
	if wanted >= p.d.current {
		return stable, "ScaleUpStabilized", "recent recommendations were lower than current one, applying the lowest recent recommendation"
	}
	return stable, "ScaleDownStabilized", "recent recommendations were higher than current one, applying the highest recent recommendation"
}

// window returns a stabilization window.
func window(rules *autoscalingv2.HPAScalingRules, otherwise time.Duration) time.Duration {
	if rules == nil || rules.StabilizationWindowSeconds == nil {
		return otherwise
	}
	return time.Duration(*rules.StabilizationWindowSeconds) * time.Second
}

// byDefault applies the limits of an autoscaler without behavior: up to 4 replicas, or twice
// the present number.
func (p *planner) byDefault(wanted int32) limited {
	low, high := minReplicas(p.HPA), p.HPA.Spec.MaxReplicas
	over := limited{high, "TooManyReplicas", messageTooMany}
	if fastest := max(saturate(2*float64(p.d.current)), 4); high > fastest {
		over = limited{fastest, reasonUpLimit, messageUpLimit}
	}
	switch {
	case wanted < low:
		return limited{low, "TooFewReplicas", messageTooFew}
	case wanted > over.replicas:
		return over
	}
	return within(wanted)
}

func within(replicas int32) limited {
	return limited{replicas, "DesiredWithinRange", "the desired count is within the acceptable range"}
}

// byPolicies applies the policies of a behavior.
func (p *planner) byPolicies(wanted int32, b *autoscalingv2.HorizontalPodAutoscalerBehavior) limited {
	switch {
	case wanted > p.d.current:
		fastest := max(p.allowed(b.ScaleUp, defaultUp, +1), p.d.current)
		over := limited{p.HPA.Spec.MaxReplicas, "TooManyReplicas", messageTooMany}
		if over.replicas > fastest {
			over = limited{fastest, reasonUpLimit, messageUpLimit}
		}
		if wanted > over.replicas {
			return over
		}
	case wanted < p.d.current:
		fastest := min(p.allowed(b.ScaleDown, defaultDown, -1), p.d.current)
		under := limited{minReplicas(p.HPA), "TooFewReplicas", messageTooFew}
		if under.replicas < fastest {
			under = limited{fastest, "ScaleDownLimit", messageDownRate}
		}
		if wanted < under.replicas {
			return under
		}
	}
	return within(wanted)
}

// Policies of a behavior that names none, as Kubernetes defaults them.
var (
	defaultUp = []autoscalingv2.HPAScalingPolicy{
		{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: 15},
		{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15},
	}
	defaultDown = []autoscalingv2.HPAScalingPolicy{{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15}}
)

// allowed returns how far the policies of a direction (+1 or -1) let the number of replicas go.
func (p *planner) allowed(rules *autoscalingv2.HPAScalingRules, otherwise []autoscalingv2.HPAScalingPolicy, direction float64) int32 {
	choose := autoscalingv2.MaxChangePolicySelect
	policies := otherwise
	if rules != nil {
		if rules.SelectPolicy != nil {
			choose = *rules.SelectPolicy
		}
		if len(rules.Policies) > 0 {
			policies = rules.Policies
		}
	}
	if choose == autoscalingv2.DisabledPolicySelect {
		return p.d.current
	}
	var out int32
	for i, policy := range policies {
		began := float64(p.d.History.before(p.d.current, p.Now.Add(-time.Duration(policy.PeriodSeconds)*time.Second)))
		reach := began + direction*float64(policy.Value)
		if policy.Type == autoscalingv2.PercentScalingPolicy {
			reach = began * (1 + direction*float64(policy.Value)/100)
		}
		if direction > 0 {
			reach = math.Ceil(reach) // so that 10 % of one replica is one more
		}
		n := saturate(reach)
		further := direction*float64(n) > direction*float64(out)
		if i == 0 || further == (choose != autoscalingv2.MinChangePolicySelect) {
			out = n
		}
	}
	return out
}

// saturate converts to a number of replicas, rounding towards zero.
func saturate(f float64) int32 {
	switch {
	case math.IsNaN(f):
		return 0
	case f >= math.MaxInt32:
		return math.MaxInt32
	case f <= math.MinInt32:
		return math.MinInt32
	}
	return int32(f)
}
