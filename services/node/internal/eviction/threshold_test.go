package eviction

import (
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// policy parses flags as the node does.
func policy(t *testing.T, args ...string) *Policy {
	t.Helper()
	p, err := parse(args...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func parse(args ...string) (*Policy, error) {
	fs := pflag.NewFlagSet("node", pflag.ContinueOnError)
	f := AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	return f.Parse()
}

// text describes a policy's thresholds for machines of 1000 of everything.
func text(p *Policy) string {
	var out []string
	for _, t := range p.Thresholds {
		value, reclaim := t.Value.Of(1000), t.Reclaim.Of(1000)
		s := string(t.Signal) + "<" + value.String()
		if !reclaim.IsZero() {
			s += "+" + reclaim.String()
		}
		if !t.Hard() {
			s += " for " + t.Grace.String()
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

func TestParse(t *testing.T) {
	const standard = "memory.available<100Mi, allocatableMemory.available<100Mi, nodefs.available<100, imagefs.available<150, nodefs.inodesFree<50, imagefs.inodesFree<50"
	for _, c := range []struct{ args, want string }{
		{"", standard},
		{"--disk-reserve=1Gi", strings.NewReplacer("nodefs.available<100", "nodefs.available<1Gi", "imagefs.available<150", "imagefs.available<1Gi").Replace(standard)},
		{"--disk-reserve=0", "memory.available<100Mi, allocatableMemory.available<100Mi, nodefs.inodesFree<50, imagefs.inodesFree<50"},
		{"--eviction-hard=", ""},
		{"--eviction-hard=pid.available<10%", "pid.available<100"},
		{"--eviction-hard=pid.available<10% --disk-reserve=20%", "nodefs.available<200, imagefs.available<200, pid.available<100"},
		{"--eviction-hard=nodefs.available<5% --disk-reserve=20%", "nodefs.available<50, imagefs.available<200"},
		{"--eviction-hard=memory.available<0%,nodefs.available<100%,imagefs.available<12.5%", "imagefs.available<125"},
		{
			"--eviction-hard=memory.available<1 --eviction-soft=memory.available<2,nodefs.available<3 --eviction-soft-grace-period=nodefs.available=1m,memory.available=90s --eviction-minimum-reclaim=memory.available=10%",
			"memory.available<1+100, memory.available<2+100 for 1m30s, allocatableMemory.available<1+100, nodefs.available<3 for 1m0s",
		},
	} {
		if got := text(policy(t, strings.Fields(c.args)...)); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.args, got, c.want)
		}
	}
	p := policy(t, "--eviction-max-pod-grace-period=60")
	if p.MaxPodGrace != time.Minute || p.Transition != 5*time.Minute {
		t.Errorf("policy: %+v", p)
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--eviction-hard=memory.available=1Gi", `--eviction-hard "memory.available=1Gi": want SIGNAL<VALUE, for instance memory.available<100Mi`},
		{"--eviction-hard=memory.free<1Gi", `--eviction-hard "memory.free<1Gi": signal "memory.free" is none of memory.available, allocatableMemory.available, nodefs.available, imagefs.available, nodefs.inodesFree, imagefs.inodesFree, pid.available`},
		{"--eviction-hard=containerfs.available<10%", "containerfs is the same disk as imagefs"},
		{"--eviction-hard=memory.available<much", "want a percentage from 0% to 100% or a size that is not negative, for instance 10% or 1Gi"},
		{"--eviction-hard=memory.available<-1Gi", "want a percentage"},
		{"--eviction-hard=memory.available<101%", "want a percentage"},
		{"--eviction-hard=memory.available<NaN%", "want a percentage"},
		{"--eviction-hard=memory.available<1Gi,memory.available<2Gi", "another threshold"},
		{"--eviction-soft=memory.available<1Gi", "--eviction-soft: memory.available needs a grace period: --eviction-soft-grace-period memory.available=1m30s"},
		{"--eviction-soft-grace-period=memory.available=1m", "--eviction-soft has no threshold for this signal"},
		{"--eviction-soft=memory.available<1Gi --eviction-soft-grace-period=memory.available=soon", "want a duration that is not negative"},
		{"--eviction-soft=memory.available<1Gi --eviction-soft-grace-period=memory.available=-1s", "want a duration that is not negative"},
		{"--eviction-minimum-reclaim=pid.available=10", "neither --eviction-hard nor --eviction-soft has a threshold for this signal"},
		{"--eviction-minimum-reclaim=memory.available", "want SIGNAL=VALUE"},
		{"--eviction-pressure-transition-period=-1s", "must not be negative"},
		{"--disk-reserve=lots", `--disk-reserve "lots": want a percentage`},
	} {
		if _, err := parse(strings.Fields(c.args)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.args, err, c.want)
		}
	}
}

func TestReserved(t *testing.T) {
	capacity := corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi"), corev1.ResourceEphemeralStorage: resource.MustParse("100Gi")}
	for args, want := range map[string]string{
		"": "memory=100Mi ephemeral-storage=10Gi",
		"--eviction-hard=memory.available<2Gi,nodefs.available<1Gi":                                                "memory=1Gi ephemeral-storage=1Gi",
		"--eviction-hard= --eviction-soft=memory.available<512Mi --eviction-soft-grace-period=memory.available=1m": "",
	} {
		got := policy(t, strings.Fields(args)...).Reserved(capacity)
		var out []string
		for _, name := range []corev1.ResourceName{corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
			if q, ok := got[name]; ok {
				out = append(out, string(name)+"="+q.String())
			}
		}
		if text := strings.Join(out, " "); text != want {
			t.Errorf("%s: %s, want %s", args, text, want)
		}
	}
}
