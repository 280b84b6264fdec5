package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"keelson.dev/services/node/internal/runtimetest"
)

func TestEnvironment(t *testing.T) {
	r := newRig(t)
	r.createObject(&corev1.ConfigMap{ObjectMeta: meta("config"), Data: map[string]string{"COLOUR": "blue", "SHAPE": "round"}})
	r.createObject(&corev1.Secret{ObjectMeta: meta("secret"), Data: map[string][]byte{"password": []byte("s3cret")}})
	p := simple("environment", "echo $(GREETING); env; "+forever)
	p.Labels = map[string]string{"app": "demo"}
	field := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	optional := true
	c := &p.Spec.Containers[0]
	c.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}
	c.EnvFrom = []corev1.EnvFromSource{{Prefix: "C_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "config"}}}}
	c.Env = []corev1.EnvVar{
		{Name: "WHO", Value: "world"}, {Name: "GREETING", Value: "hello $(WHO) $$(WHO) $(NOBODY)"},
		{Name: "POD", ValueFrom: field("metadata.name")}, {Name: "APP", ValueFrom: field("metadata.labels['app']")},
		{Name: "IP", ValueFrom: field("status.podIP")}, {Name: "HOST", ValueFrom: field("status.hostIP")},
		{Name: "MEMORY", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}}},
		{Name: "PASSWORD", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "secret"}, Key: "password"}}},
		{Name: "ABSENT", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Key: "x", Optional: &optional}}},
	}
	p = r.awaitReady(r.create(p))
	got := r.exec(p, "main", "env")
	for _, line := range []string{
		"C_COLOUR=blue", "C_SHAPE=round", "GREETING=hello world $(WHO) $(NOBODY)", "POD=environment", "APP=demo", "IP=" + p.Status.PodIP,
		"HOST=10.89.0.11", "MEMORY=64", "PASSWORD=s3cret",
	} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("%q is missing in:\n%s", line, got)
		}
	}
	if strings.Contains(got, "ABSENT") {
		t.Error("an optional reference to a missing ConfigMap set a variable")
	}
}

func TestVolumes(t *testing.T) {
	r := newRig(t)
	r.createObject(&corev1.ConfigMap{ObjectMeta: meta("config"), Data: map[string]string{"a.conf": "one", "b.conf": "two"}})
	r.createObject(&corev1.Secret{ObjectMeta: meta("secret"), Data: map[string][]byte{"key": []byte("k")}})
	p := simple("volumes", forever)
	p.Labels = map[string]string{"app": "demo"}
	group, user := int64(2000), int64(1000)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group, RunAsUser: &user}
	size := resource.MustParse("1Mi")
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("from the node"), 0o644); err != nil {
		t.Fatal(err)
	}
	mode := int32(0o400)
	p.Spec.Volumes = []corev1.Volume{
		{Name: "disk", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: "memory", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &size}}},
		{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "config"}}}},
		{Name: "secret", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "secret", DefaultMode: &mode, Items: []corev1.KeyToPath{{Key: "key", Path: "deep/er/key"}}}}},
		{Name: "down", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}}},
		{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: host}}},
		{Name: "mixed", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "config"}, Items: []corev1.KeyToPath{{Key: "a.conf", Path: "c/a"}}}},
			{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "secret"}}},
		}}}},
	}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{
		{Name: "disk", MountPath: "/disk"}, {Name: "memory", MountPath: "/memory"}, {Name: "config", MountPath: "/config"},
		{Name: "secret", MountPath: "/secret"}, {Name: "down", MountPath: "/down"}, {Name: "host", MountPath: "/host", ReadOnly: true},
		{Name: "mixed", MountPath: "/mixed"}, {Name: "config", MountPath: "/single/b.conf", SubPath: "b.conf"}, {Name: "disk", MountPath: "/part", SubPathExpr: "of/$(NAME)"},
	}
	p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "NAME", Value: "pod-1"}}
	p = r.awaitReady(r.create(p))
	sh := func(script string) string { return r.exec(p, "main", "sh", "-c", script) }
	for script, want := range map[string]string{
		"cat /config/a.conf":                       "one",
		"cat /secret/deep/er/key":                  "k",
		"stat -c '%a %g' -L /secret/deep/er/key":   "440 2000\n",
		"cat /down/labels":                         `app="demo"`,
		"cat /host/file":                           "from the node",
		"cat /mixed/c/a":                           "one",
		"cat /mixed/key":                           "k",
		"cat /single/b.conf":                       "two",
		"touch /disk/x && stat -c '%u %g' /disk/x": "1000 2000\n",
		"touch /part/y && ls /disk/of/pod-1":       "y\n",
		"grep ' /memory ' /proc/mounts | cut -d' ' -f3 2>/dev/null || grep -c ' /memory tmpfs ' /proc/mounts": "",
		"dd if=/dev/zero of=/memory/big bs=1024 count=4096 2>/dev/null || echo full":                          "full\n",
		"touch /config/x 2>/dev/null || echo read-only":                                                       "read-only\n",
		"touch /host/x 2>/dev/null || echo read-only":                                                         "read-only\n",
	} {
		if got := sh(script); want != "" && got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	// A change arrives in the mounted files, and files of removed keys disappear.
	cm := &corev1.ConfigMap{ObjectMeta: meta("config"), Data: map[string]string{"a.conf": "three", "c.conf": "new"}}
	r.updateObject(cm)
	began := time.Now()
	r.until("the change arrives", time.Minute, func() bool { return sh("cat /config/a.conf") == "three" })
	t.Logf("change of a ConfigMap visible after %v", time.Since(began))
	if got := sh("ls /config"); got != "a.conf\nc.conf\n" {
		t.Errorf("files: %q", got)
	}
	r.until("the change arrives in the projected volume", time.Minute, func() bool { return sh("cat /mixed/c/a") == "three" })
	if got := sh("cat /single/b.conf"); got != "two" {
		t.Errorf("a subPath mount followed its volume: %q", got)
	}
	dir := filepath.Join(r.dir, "pods", string(p.UID))
	r.delete(p)
	r.awaitGone(p)
	r.until("its directory is gone", time.Minute, func() bool { _, err := os.Stat(dir); return err != nil })
	if got := readFile(t, filepath.Join(host, "file")); got != "from the node" {
		t.Errorf("the node's own file: %q", got)
	}
}

func TestSecurity(t *testing.T) {
	r := newRig(t)
	user, group, other, root := int64(1000), int64(3000), int64(4000), int64(0)
	yes, no := true, false
	p := simple("secured", forever)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{
		RunAsUser: &user, RunAsGroup: &group, SupplementalGroups: []int64{other}, RunAsNonRoot: &yes,
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		Sysctls:        []corev1.Sysctl{{Name: "net.ipv4.ip_unprivileged_port_start", Value: "80"}},
	}
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
		ReadOnlyRootFilesystem: &yes, AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
	privileged := box("privileged", forever)
	privileged.SecurityContext = &corev1.SecurityContext{Privileged: &yes, RunAsUser: &root, RunAsNonRoot: &no}
	p.Spec.Containers = append(p.Spec.Containers, privileged)
	p = r.awaitReady(r.create(p))
	for script, want := range map[string]string{
		"id -u":                                  "1000\n",
		"id -g":                                  "3000\n",
		"id -G":                                  "3000 4000\n",
		"touch /x 2>/dev/null || echo read-only": "read-only\n",
		"grep NoNewPrivs /proc/self/status":      "NoNewPrivs:\t1\n",
		"grep CapEff /proc/self/status":          "CapEff:\t0000000000000000\n",
		"grep Seccomp: /proc/self/status":        "Seccomp:\t2\n",
		"cat /proc/sys/net/ipv4/ip_unprivileged_port_start": "80\n",
	} {
		if got := r.exec(p, "main", "sh", "-c", script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if got := r.exec(p, "privileged", "sh", "-c", "mkdir /tmp/m && mount -t tmpfs none /tmp/m && echo mounted; ls /dev/kmsg"); got != "mounted\n/dev/kmsg\n" {
		t.Errorf("privileged: %q", got)
	}
	refused := simple("refused", forever)
	refused.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: &yes}
	refused = r.create(refused)
	refused = r.await(refused, "is refused", func(p *corev1.Pod) bool {
		s := containerStatus(p, "main")
		return s.State.Waiting != nil && s.State.Waiting.Reason == "CreateContainerConfigError"
	})
	if m := containerStatus(refused, "main").State.Waiting.Message; !strings.Contains(m, "container has runAsNonRoot and image will run as root") {
		t.Errorf("message: %q", m)
	}
	allowed := simple("allowed", forever)
	allowed.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: &yes}
	allowed.Spec.Containers[0].Image = runtimetest.UserImage
	allowed = r.awaitReady(r.create(allowed))
	if got := r.exec(allowed, "main", "id", "-u"); got != "1000\n" {
		t.Errorf("user of the image: %q", got)
	}
}

func TestNamespaces(t *testing.T) {
	r := newRig(t)
	yes := true
	sharing := simple("sharing", forever)
	sharing.Spec.ShareProcessNamespace = &yes
	sharing.Spec.Hostname, sharing.Spec.Subdomain = "alpha", "group"
	sharing.Spec.SetHostnameAsFQDN = &yes
	sharing.Spec.HostAliases = []corev1.HostAlias{{IP: "192.0.2.1", Hostnames: []string{"one.example", "two.example"}}}
	sharing.Spec.DNSPolicy = corev1.DNSNone
	ndots := "2"
	sharing.Spec.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.53"}, Searches: []string{"example.com"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &ndots}}}
	sharing.Spec.Containers = append(sharing.Spec.Containers, box("other", "exec sleep 4242"))
	sharing = r.awaitReady(r.create(sharing))
	r.until("one container sees the other's processes", time.Minute, func() bool { return strings.Contains(r.exec(sharing, "main", "ps"), "sleep 4242") })
	if got := r.exec(sharing, "main", "hostname"); got != "alpha.group.default.svc.cluster.local\n" {
		t.Errorf("host name: %q", got)
	}
	hosts := r.exec(sharing, "main", "cat", "/etc/hosts")
	for _, line := range []string{"192.0.2.1\tone.example\ttwo.example", sharing.Status.PodIP + "\talpha.group.default.svc.cluster.local\talpha"} {
		if !strings.Contains(hosts, line+"\n") {
			t.Errorf("/etc/hosts lacks %q:\n%s", line, hosts)
		}
	}
	if got := r.exec(sharing, "main", "cat", "/etc/resolv.conf"); got != "search example.com\nnameserver 192.0.2.53\noptions ndots:2\n" {
		t.Errorf("/etc/resolv.conf: %q", got)
	}
	host := simple("host", forever)
	host.Spec.HostNetwork, host.Spec.HostPID, host.Spec.HostIPC = true, true, true
	host = r.awaitReady(r.create(host))
	if host.Status.PodIP != "10.89.0.11" {
		t.Errorf("address: %s", host.Status.PodIP)
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got := r.exec(host, "main", "readlink", "/proc/self/ns/net"); got != own+"\n" {
		t.Errorf("network namespace %q, the node's is %q", got, own)
	}
}

func TestResources(t *testing.T) {
	r := newRig(t)
	p := simple("limited", forever)
	p.Spec.Containers[0].Resources = corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("32Mi")},
		Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("64Mi")},
	}
	p = r.awaitReady(r.create(p))
	if p.Status.QOSClass != corev1.PodQOSBurstable {
		t.Errorf("class: %s", p.Status.QOSClass)
	}
	id := r.state(p).Latest("main").ID
	group := r.runtime.CgroupRoot + "/burstable/pod" + string(p.UID)
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err == nil {
		for file, want := range map[string]string{
			"/sys/fs/cgroup/memory" + group + "/memory.limit_in_bytes":            "67108864\n",
			"/sys/fs/cgroup/memory" + group + "/" + id + "/memory.limit_in_bytes": "67108864\n",
			"/sys/fs/cgroup/cpu" + group + "/cpu.shares":                          "102\n",
			"/sys/fs/cgroup/cpu" + group + "/cpu.cfs_quota_us":                    "50000\n",
			"/sys/fs/cgroup/cpu" + group + "/" + id + "/cpu.cfs_quota_us":         "50000\n",
		} {
			if got := readFile(t, file); got != want {
				t.Errorf("%s: %q, want %q", file, got, want)
			}
		}
	} else {
		for file, want := range map[string]string{"/memory.max": "67108864\n", "/cpu.max": "50000 100000\n"} {
			if got := readFile(t, "/sys/fs/cgroup"+group+file); got != want {
				t.Errorf("%s: %q, want %q", file, got, want)
			}
		}
	}
	greedy := simple("greedy", "sleep 0.5; dd if=/dev/zero of=/dev/null bs=200M count=1; echo survived; sleep 100")
	greedy.Spec.RestartPolicy = corev1.RestartPolicyNever
	greedy.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("16Mi")}
	greedy.Spec.Containers[0].Command = []string{"dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"}
	greedy = r.create(greedy)
	greedy = r.await(greedy, "ran out of memory", func(p *corev1.Pod) bool {
		s := containerStatus(p, "main").State.Terminated // the runtime may report the exit before its reason
		return s != nil && s.Reason == "OOMKilled"
	})
	if s := containerStatus(greedy, "main").State.Terminated; s.Reason != "OOMKilled" || s.ExitCode != 137 {
		t.Errorf("terminated: %+v", s)
	}
	r.delete(p)
	r.awaitGone(p)
	for _, base := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup"} {
		if _, err := os.Stat(base + group); err == nil {
			t.Errorf("%s still exists", base+group)
		}
	}
}
