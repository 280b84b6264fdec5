package admission

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/internal/identity"
)

// objects is a State whose objects are keyed by "resource/namespace/name". Only GetFresh sees
// those in fresh.
type objects struct {
	cached, fresh map[string]resource.Object
}

func (o *objects) Get(_, res, namespace, name string) (resource.Object, bool) {
	obj, ok := o.cached[res+"/"+namespace+"/"+name]
	return obj, ok
}

func (o *objects) GetFresh(_ context.Context, group, res, namespace, name string) (resource.Object, bool, error) {
	if obj, ok := o.fresh[res+"/"+namespace+"/"+name]; ok {
		return obj, true, nil
	}
	obj, ok := o.Get(group, res, namespace, name)
	return obj, ok, nil
}

func (o *objects) Each(_, res, namespace string, f func(resource.Object) bool) {
	for key, obj := range o.cached {
		if strings.HasPrefix(key, res+"/"+namespace) && !f(obj) {
			return
		}
	}
}

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}

func state(list ...resource.Object) *objects {
	s := &objects{cached: map[string]resource.Object{}, fresh: map[string]resource.Object{}}
	for _, o := range list {
		s.cached[kindOf(o).Resource+"/"+o.GetNamespace()+"/"+o.GetName()] = o
	}
	return s
}

var kinds = kind.All()

func kindOf(o resource.Object) *resource.Kind {
	for _, k := range kinds {
		switch o.(type) {
		case *corev1.Event:
			continue
		}
		if sameType(k.New(), o) {
			return k
		}
	}
	return nil
}

func attributes(op Operation, obj, old resource.Object) *Attributes {
	about := obj
	if about == nil {
		about = old
	}
	return &Attributes{
		Operation: op, Kind: kindOf(about), Namespace: about.GetNamespace(), Name: about.GetName(),
		Object: obj, Old: old, Warn: func(string) {},
	}
}

// refused checks the text of an error. An empty text means no error.
func refused(t *testing.T, name string, err error, text string) {
	t.Helper()
	switch {
	case text == "" && err != nil:
		t.Errorf("%s: %v", name, err)
	case text != "" && (err == nil || !strings.Contains(err.Error(), text)):
		t.Errorf("%s: got %v, want %q", name, err, text)
	}
}

func TestNamespaceLifecycle(t *testing.T) {
	ending := &corev1.Namespace{ObjectMeta: meta("", "ending"), Status: corev1.NamespaceStatus{Phase: corev1.NamespaceTerminating}}
	s := state(&corev1.Namespace{ObjectMeta: meta("", "there")}, ending)
	s.fresh["namespaces//new"] = &corev1.Namespace{ObjectMeta: meta("", "new")}
	p := &NamespaceLifecycle{State: s}
	for namespace, text := range map[string]string{
		"there": "", "new": "", "none": `namespaces "none" not found`,
		"ending": "unable to create new content in namespace ending because it is being terminated",
	} {
		err := p.Admit(t.Context(), attributes(Create, &corev1.ConfigMap{ObjectMeta: meta(namespace, "a")}, nil))
		refused(t, namespace, err, text)
		if namespace == "ending" && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			t.Errorf("%v has no cause", err)
		}
		refused(t, namespace, p.Admit(t.Context(), attributes(Update, &corev1.ConfigMap{ObjectMeta: meta(namespace, "a")}, nil)), "")
	}
	refused(t, "immortal", p.Validate(t.Context(), attributes(Delete, nil, &corev1.Namespace{ObjectMeta: meta("", "kube-system")})), "this namespace may not be deleted")
	refused(t, "mortal", p.Validate(t.Context(), attributes(Delete, nil, &corev1.Namespace{ObjectMeta: meta("", "there")})), "")
}

// later is a State in which the default service account appears after a number of reads.
type later struct {
	*objects
	asked, from int
}

func (l *later) Get(group, res, namespace, name string) (resource.Object, bool) {
	if res != "serviceaccounts" {
		return l.objects.Get(group, res, namespace, name)
	}
	if l.asked++; l.asked < l.from {
		return nil, false
	}
	return &corev1.ServiceAccount{ObjectMeta: meta(namespace, name)}, true
}

func TestServiceAccountWait(t *testing.T) {
	made := func(name string, age time.Duration) *corev1.Namespace {
		ns := &corev1.Namespace{ObjectMeta: meta("", name)}
		ns.CreationTimestamp = metav1.NewTime(time.Now().Add(-age))
		return ns
	}
	s := state(made("new", 0), made("old", time.Minute))
	for name, test := range map[string]struct {
		namespace, account string
		from               int
		text               string
	}{
		"it appears":        {"new", "", 4, ""},
		"an old namespace":  {"old", "", 4, `serviceaccount "default" not found`},
		"another account":   {"new", "other", 4, `serviceaccount "other" not found`},
		"it never appears":  {"new", "", 1 << 30, `serviceaccount "default" not found`},
		"no such namespace": {"none", "", 4, `serviceaccount "default" not found`},
	} {
		p := &ServiceAccount{State: &later{objects: s, from: test.from}, Wait: time.Minute}
		if test.from > 4 {
			p.Wait = 3 * accountPoll
		}
		pod := &corev1.Pod{ObjectMeta: meta(test.namespace, "p"), Spec: corev1.PodSpec{ServiceAccountName: test.account}}
		refused(t, name, p.Admit(context.Background(), attributes(Create, pod, nil)), test.text)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	p := &ServiceAccount{State: &later{objects: s, from: 1 << 30}, Wait: time.Hour}
	refused(t, "canceled request", p.Admit(ctx, attributes(Create, &corev1.Pod{ObjectMeta: meta("new", "p")}, nil)), "not found")
}

func TestServiceAccount(t *testing.T) {
	no, yes := false, true
	s := state(
		&corev1.ServiceAccount{ObjectMeta: meta("ns", "default"), ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull"}}},
		&corev1.ServiceAccount{ObjectMeta: meta("ns", "quiet"), AutomountServiceAccountToken: &no},
	)
	s.fresh["serviceaccounts/ns/new"] = &corev1.ServiceAccount{ObjectMeta: meta("ns", "new")}
	p := &ServiceAccount{State: s}
	pod := func(change func(*corev1.Pod)) *corev1.Pod {
		pod := &corev1.Pod{ObjectMeta: meta("ns", "p"), Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: "i"}}, Containers: []corev1.Container{{Name: "c"}}}}
		change(pod)
		return pod
	}
	admit := func(pod *corev1.Pod) error { return p.Admit(t.Context(), attributes(Create, pod, nil)) }

	usual := pod(func(*corev1.Pod) {})
	refused(t, "usual", admit(usual), "")
	v := usual.Spec.Volumes
	if usual.Spec.ServiceAccountName != "default" || usual.Spec.DeprecatedServiceAccount != "default" || len(usual.Spec.ImagePullSecrets) != 1 ||
		len(v) != 1 || !strings.HasPrefix(v[0].Name, "kube-api-access-") || len(v[0].Projected.Sources) != 3 || *v[0].Projected.Sources[0].ServiceAccountToken.ExpirationSeconds != 3607 {
		t.Errorf("%+v", usual.Spec)
	}
	for _, c := range append(usual.Spec.InitContainers, usual.Spec.Containers...) {
		if m := c.VolumeMounts; len(m) != 1 || m[0].Name != v[0].Name || !m[0].ReadOnly || m[0].MountPath != "/var/run/secrets/kubernetes.io/serviceaccount" {
			t.Errorf("%s mounts %+v", c.Name, m)
		}
	}
	for name, test := range map[string]struct {
		pod     *corev1.Pod
		volumes int
		text    string
	}{
		"new account":                   {pod(func(p *corev1.Pod) { p.Spec.ServiceAccountName = "new" }), 1, ""},
		"no account":                    {pod(func(p *corev1.Pod) { p.Spec.ServiceAccountName = "none" }), 0, `error looking up service account ns/none: serviceaccount "none" not found`},
		"account without automount":     {pod(func(p *corev1.Pod) { p.Spec.ServiceAccountName = "quiet" }), 0, ""},
		"the pod overrides the account": {pod(func(p *corev1.Pod) { p.Spec.ServiceAccountName, p.Spec.AutomountServiceAccountToken = "quiet", &yes }), 1, ""},
		"pod without automount":         {pod(func(p *corev1.Pod) { p.Spec.AutomountServiceAccountToken = &no }), 0, ""},
		"another mount at the path": {pod(func(p *corev1.Pod) {
			p.Spec.InitContainers = nil
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "own", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}}
		}), 0, ""},
		"mirror": {pod(func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} }), 0, ""},
		"mirror with account": {pod(func(p *corev1.Pod) {
			p.Annotations, p.Spec.ServiceAccountName = map[string]string{corev1.MirrorPodAnnotationKey: "x"}, "default"
		}), 0, "a mirror pod may not reference service accounts"},
	} {
		refused(t, name, admit(test.pod), test.text)
		if len(test.pod.Spec.Volumes) != test.volumes {
			t.Errorf("%s: volumes %+v", name, test.pod.Spec.Volumes)
		}
	}
	own := pod(func(p *corev1.Pod) { p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "own"}} })
	if refused(t, "own pull secret", admit(own), ""); own.Spec.ImagePullSecrets[0].Name != "own" {
		t.Errorf("%+v", own.Spec.ImagePullSecrets)
	}
}

func TestPriority(t *testing.T) {
	never := corev1.PreemptNever
	high := &schedulingv1.PriorityClass{ObjectMeta: meta("", "high"), Value: 100, PreemptionPolicy: &never}
	usual := &schedulingv1.PriorityClass{ObjectMeta: meta("", "usual"), Value: 7, GlobalDefault: true}
	ten := int32(10)
	lower := corev1.PreemptLowerPriority
	for name, test := range map[string]struct {
		classes []resource.Object
		spec    corev1.PodSpec
		value   int32
		class   string
		text    string
	}{
		"none":           {nil, corev1.PodSpec{}, 0, "", ""},
		"default":        {[]resource.Object{high, usual}, corev1.PodSpec{}, 7, "usual", ""},
		"named":          {[]resource.Object{high, usual}, corev1.PodSpec{PriorityClassName: "high"}, 100, "high", ""},
		"unknown":        {nil, corev1.PodSpec{PriorityClassName: "x"}, 0, "", "no PriorityClass with name x was found"},
		"wrong priority": {[]resource.Object{high}, corev1.PodSpec{PriorityClassName: "high", Priority: &ten}, 0, "", "the integer value of priority (10) must not be provided in pod spec; priority admission controller computed 100"},
		"wrong policy":   {[]resource.Object{high}, corev1.PodSpec{PriorityClassName: "high", PreemptionPolicy: &lower}, 0, "", "the string value of PreemptionPolicy (PreemptLowerPriority) must not be provided"},
	} {
		pod := &corev1.Pod{ObjectMeta: meta("ns", "p"), Spec: test.spec}
		refused(t, name, (&Priority{State: state(test.classes...)}).Admit(t.Context(), attributes(Create, pod, nil)), test.text)
		if test.text == "" && (*pod.Spec.Priority != test.value || pod.Spec.PriorityClassName != test.class || pod.Spec.PreemptionPolicy == nil) {
			t.Errorf("%s: %+v", name, pod.Spec)
		}
	}
	p := &Priority{State: state(usual)}
	second := &schedulingv1.PriorityClass{ObjectMeta: meta("", "second"), GlobalDefault: true}
	refused(t, "second default", p.Validate(t.Context(), attributes(Create, second, nil)), "PriorityClass usual is already marked as default. Only one default can exist")
	refused(t, "same class", p.Validate(t.Context(), attributes(Update, usual, usual)), "")
	pod, old := &corev1.Pod{ObjectMeta: meta("ns", "p")}, &corev1.Pod{ObjectMeta: meta("ns", "p"), Spec: corev1.PodSpec{Priority: &ten}}
	refused(t, "update", p.Admit(t.Context(), attributes(Update, pod, old)), "")
	if pod.Spec.Priority != &ten {
		t.Errorf("an update lost the priority")
	}
}

func TestTolerations(t *testing.T) {
	p := &DefaultTolerationSeconds{NotReady: 30, Unreachable: 40}
	pod := &corev1.Pod{ObjectMeta: meta("ns", "p")}
	for range 2 { // the second call must add nothing
		refused(t, "usual", p.Admit(t.Context(), attributes(Create, pod, nil)), "")
	}
	if got := pod.Spec.Tolerations; len(got) != 2 || *got[0].TolerationSeconds != 30 || *got[1].TolerationSeconds != 40 {
		t.Errorf("%+v", got)
	}
	all := &corev1.Pod{ObjectMeta: meta("ns", "p"), Spec: corev1.PodSpec{Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}}}
	if refused(t, "all", p.Admit(t.Context(), attributes(Create, all, nil)), ""); len(all.Spec.Tolerations) != 1 {
		t.Errorf("%+v", all.Spec.Tolerations)
	}
}

func TestStorage(t *testing.T) {
	class := func(name string, age time.Duration, def string) *storagev1.StorageClass {
		c := &storagev1.StorageClass{ObjectMeta: meta("", name)}
		c.CreationTimestamp = metav1.NewTime(time.Unix(1e9, 0).Add(-age))
		c.Annotations = map[string]string{"storageclass.kubernetes.io/is-default-class": def}
		return c
	}
	growing := class("growing", 0, "false")
	yes := true
	growing.AllowVolumeExpansion = &yes
	s := state(class("old", time.Hour, "true"), class("new", time.Minute, "true"), class("other", 0, "false"), growing)
	d := &DefaultStorageClass{State: s}
	empty := ""
	for name, test := range map[string]struct {
		class *string
		want  string
	}{"unset": {nil, "new"}, "none": {&empty, ""}} {
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: meta("ns", "c"), Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: test.class}}
		if refused(t, name, d.Admit(t.Context(), attributes(Create, claim, nil)), ""); *claim.Spec.StorageClassName != test.want {
			t.Errorf("%s: %s", name, *claim.Spec.StorageClassName)
		}
		refused(t, name, StorageProtection{}.Admit(t.Context(), attributes(Create, claim, nil)), "")
		refused(t, name, StorageProtection{}.Admit(t.Context(), attributes(Create, claim, nil)), "")
		if f := claim.Finalizers; len(f) != 1 || f[0] != "kubernetes.io/pvc-protection" {
			t.Errorf("finalizers %v", f)
		}
	}
	claim := func(class, size string, phase corev1.PersistentVolumeClaimPhase) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{ObjectMeta: meta("ns", "c"), Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: apiresource.MustParse(size)}},
		}, Status: corev1.PersistentVolumeClaimStatus{Phase: phase}}
	}
	r := &ClaimResize{State: s}
	refused(t, "same", r.Validate(t.Context(), attributes(Update, claim("old", "1Gi", corev1.ClaimBound), claim("old", "1Gi", corev1.ClaimBound))), "")
	refused(t, "grows", r.Validate(t.Context(), attributes(Update, claim("growing", "2Gi", corev1.ClaimBound), claim("growing", "1Gi", corev1.ClaimBound))), "")
	refused(t, "expansion not allowed", r.Validate(t.Context(), attributes(Update, claim("old", "2Gi", corev1.ClaimBound), claim("old", "1Gi", corev1.ClaimBound))), "only dynamically provisioned pvc can be resized")
	refused(t, "unbound", r.Validate(t.Context(), attributes(Update, claim("growing", "2Gi", corev1.ClaimPending), claim("growing", "1Gi", corev1.ClaimPending))), "Only bound persistent volume claims can be expanded")
}

func TestNodeTaint(t *testing.T) {
	node := &corev1.Node{ObjectMeta: meta("", "n")}
	for range 2 {
		refused(t, "node", NodeTaint{}.Admit(t.Context(), attributes(Create, node, nil)), "")
	}
	if got := node.Spec.Taints; len(got) != 1 || got[0].Key != corev1.TaintNodeNotReady || got[0].Effect != corev1.TaintEffectNoSchedule {
		t.Errorf("%+v", got)
	}
}

// granter is an Authorizer that grants the listed rights.
type granter map[string]bool

func (g granter) Authorize(_ context.Context, a *request.Attributes) (bool, string, error) {
	return g[a.User.Name+" "+a.Verb+" "+a.Resource.Resource+" "+a.Name], "", nil
}

func csr(t *testing.T, organization string) []byte { return csrOf(t, "x", organization) }

func csrOf(t *testing.T, name string, organization ...string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name, Organization: organization}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func TestCertificates(t *testing.T) {
	p := &Certificates{Authorizer: granter{"approver approve signers example.com/*": true, "signer sign signers example.com/one": true}}
	ask := func(signer string, request []byte) *certificatesv1.CertificateSigningRequest {
		return &certificatesv1.CertificateSigningRequest{ObjectMeta: meta("", "c"), Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: signer, Request: request, Username: "forged"}}
	}
	c := ask("example.com/one", nil)
	a := attributes(Create, c, nil)
	a.User = request.User{Name: "u", UID: "1", Groups: []string{"g"}, Extra: map[string][]string{"k": {"v"}}}
	if refused(t, "create", p.Admit(t.Context(), a), ""); c.Spec.Username != "u" || c.Spec.UID != "1" || c.Spec.Groups[0] != "g" || c.Spec.Extra["k"][0] != "v" {
		t.Errorf("%+v", c.Spec)
	}
	client := certificatesv1.KubeAPIServerClientSignerName
	refused(t, "masters", p.Validate(t.Context(), attributes(Create, ask(client, csr(t, "system:masters")), nil)), "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed")
	refused(t, "others", p.Validate(t.Context(), attributes(Create, ask(client, csr(t, "devs")), nil)), "")
	door := func(user, subresource string, obj, old *certificatesv1.CertificateSigningRequest) error {
		a := attributes(Update, obj, old)
		a.User.Name, a.Subresource = user, subresource
		return p.Validate(t.Context(), a)
	}
	refused(t, "approver", door("approver", "approval", c, c), "")
	refused(t, "without the right", door("nobody", "approval", c, c), `user not permitted to approve requests with signerName "example.com/one"`)
	signed := c.DeepCopy()
	signed.Status.Certificate = []byte("x")
	refused(t, "signer", door("signer", "status", signed, c), "")
	refused(t, "approver signs", door("approver", "status", signed, c), "user not permitted to sign")
	refused(t, "condition", door("approver", "status", c, c), "")
}

// TestReservedNames requests certificates with reserved names, from every signer.
func TestReservedNames(t *testing.T) {
	p := &Certificates{State: state(), Reserved: []string{"my-apiserver"}}
	const client, kubelet, serving = certificatesv1.KubeAPIServerClientSignerName, certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.KubeletServingSignerName
	free, theirs := []string{client, "kubernetes.io/legacy-unknown", "example.com/one"}, []string{kubelet, serving}
	for _, test := range []struct {
		signers            []string
		name, organization string
		want               string
	}{
		{free, "jane", "devs", ""},
		{free, "jane", "system:masters", "system:masters"},
		{free, "jane", "system:nodes", `organization "system:nodes" is reserved`},
		{free, "jane", "system:bootstrappers:x", "is reserved"},
		{free, "system:node:n", "devs", `common name "system:node:n" is reserved`},
		{free, "system:kube-controller-manager", "devs", "is reserved"},
		{free, "system:serviceaccount:kube-system:x", "devs", "is reserved"},
		{free, "kube-apiserver", "devs", "is reserved"},
		{free, "kubernetes-admin", "devs", "is reserved"},
		{free, "keelson-peer", "devs", "is reserved"},
		{free, "my-apiserver", "devs", "is reserved"},
		{theirs, "system:node:n", "system:nodes", ""},
		{theirs, "system:node:", "system:nodes", "does not begin with"},
		{theirs, "jane", "system:nodes", "does not begin with"},
		{theirs, "kube-apiserver", "system:nodes", "does not begin with"},
		{theirs, "system:node:n", "system:masters", "organization is not"},
	} {
		for _, signer := range test.signers {
			c := &certificatesv1.CertificateSigningRequest{ObjectMeta: meta("", "c"), Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: signer, Request: csrOf(t, test.name, test.organization)}}
			a := attributes(Create, c, nil)
			a.User = request.User{Name: "root", Groups: []string{"system:masters"}}
			refused(t, signer+" for "+test.name+" of "+test.organization, p.Validate(t.Context(), a), test.want)
		}
	}
}

// TestBootstrapRequests checks what the bearer of a bootstrap token may request.
func TestBootstrapRequests(t *testing.T) {
	const kubelet = certificatesv1.KubeAPIServerClientKubeletSignerName
	p := &Certificates{State: state(
		&corev1.Node{ObjectMeta: meta("", "planned")},
		&corev1.Node{ObjectMeta: meta("", "lives"), Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{KubeletVersion: "v1"}}},
		&corev1.Node{ObjectMeta: meta("", "beats")}, &coordinationv1.Lease{ObjectMeta: meta("kube-node-lease", "beats")},
	)}
	for name, test := range map[string]struct {
		signer, node, only string
		want               string
	}{
		"a new node":                    {kubelet, "n", "", ""},
		"a Node created by hand":        {kubelet, "planned", "", ""},
		"a Node that has reported":      {kubelet, "lives", "", "`kubectl delete node lives`"},
		"a Node with a lease":           {kubelet, "beats", "", "`kubectl delete node beats`"},
		"the token's node":              {kubelet, "n", "n", ""},
		"not the token's node":          {kubelet, "n", "m", `this bootstrap token is for node "m", not for "n"`},
		"a serving certificate":         {certificatesv1.KubeletServingSignerName, "n", "", "may only request certificates of signer " + kubelet},
		"another signer":                {"example.com/one", "", "", "may only request certificates of signer " + kubelet},
		"a user's certificate":          {certificatesv1.KubeAPIServerClientSignerName, "", "", "may only request certificates of signer " + kubelet},
		"a user's, with a node's token": {certificatesv1.KubeAPIServerClientSignerName, "", "n", "may only request certificates of signer " + kubelet},
	} {
		request := csrOf(t, "jane", "devs")
		if test.node != "" {
			request = csrOf(t, "system:node:"+test.node, "system:nodes")
		}
		ask := func(user string, groups ...string) error {
			a := attributes(Create, &certificatesv1.CertificateSigningRequest{ObjectMeta: meta("", "c"), Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: test.signer, Request: request}}, nil)
			a.User.Name, a.User.Groups = user, groups
			if test.only != "" {
				a.User.Extra = map[string][]string{identity.BootstrapNode: {test.only}}
			}
			return p.Validate(t.Context(), a)
		}
		refused(t, name, ask("system:bootstrap:abcdef", "system:bootstrappers"), test.want)
		refused(t, name+", by a node", ask("system:node:"+test.node, "system:nodes"), "")
	}
}

type escalation struct{ asked []string }

func (e *escalation) CheckRole(_ context.Context, _ request.User, namespace, name string, _ []rbacv1.PolicyRule, aggregates bool) error {
	e.asked = append(e.asked, "role "+namespace+"/"+name)
	return errors.New("too much")
}

func (e *escalation) CheckBinding(_ context.Context, _ request.User, namespace, name string, _ rbacv1.RoleRef) error {
	e.asked = append(e.asked, "binding "+namespace+"/"+name)
	return errors.New("too much")
}

func TestRBAC(t *testing.T) {
	role := &rbacv1.Role{ObjectMeta: meta("ns", "r"), Rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}}}}
	cluster := &rbacv1.ClusterRole{ObjectMeta: meta("", "r"), AggregationRule: &rbacv1.AggregationRule{}}
	binding := &rbacv1.RoleBinding{ObjectMeta: meta("ns", "b"), RoleRef: rbacv1.RoleRef{Name: "r"}}
	clusterBinding := &rbacv1.ClusterRoleBinding{ObjectMeta: meta("", "b")}
	for _, obj := range []resource.Object{role, cluster, binding, clusterBinding} {
		p := &RBAC{Escalation: &escalation{}}
		refused(t, "create", p.Validate(t.Context(), attributes(Create, obj, nil)), "too much")
		same := obj.DeepCopyObject().(resource.Object)
		same.SetLabels(map[string]string{"a": "b"})
		refused(t, "same rights", p.Validate(t.Context(), attributes(Update, same, obj)), "")
		refused(t, "delete", p.Validate(t.Context(), attributes(Delete, nil, obj)), "")
	}
	more := role.DeepCopy()
	more.Rules[0].Verbs = []string{"*"}
	refused(t, "more", (&RBAC{Escalation: &escalation{}}).Validate(t.Context(), attributes(Update, more, role)), "too much")
}

func TestNodeRestriction(t *testing.T) {
	own := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "own", UID: "1"}, Spec: corev1.PodSpec{NodeName: "n", ServiceAccountName: "sa"}}
	other := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "other", UID: "2"}, Spec: corev1.PodSpec{NodeName: "m"}}
	own.Spec.Volumes = []corev1.Volume{
		{VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{}}, {ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "vault"}},
		}}}},
	}
	mute := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "mute", UID: "3"}, Spec: corev1.PodSpec{NodeName: "n", ServiceAccountName: "sa"}}
	self := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "n1"}}
	p := &NodeRestriction{State: state(own, other, mute, self),
		Authorizer: granter{"system:node:n request-serviceaccounts-token-audience granted sa": true},
		NodeOf: func(u request.User) (string, bool) {
			return strings.TrimPrefix(u.Name, "system:node:"), strings.HasPrefix(u.Name, "system:node:")
		}}
	owner := metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: "n", UID: "n1", Controller: new(bool)}
	*owner.Controller = true
	mirror := func(change func(*corev1.Pod)) *corev1.Pod {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "m", Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "x"},
			OwnerReferences: []metav1.OwnerReference{owner}}, Spec: corev1.PodSpec{NodeName: "n"}}
		change(pod)
		return pod
	}
	node := func(change func(*corev1.Node)) *corev1.Node {
		n := &corev1.Node{ObjectMeta: meta("", "n")}
		change(n)
		return n
	}
	sub := func(s string, a *Attributes) *Attributes { a.Subresource = s; return a }
	labelled := own.DeepCopy()
	labelled.Labels = map[string]string{"a": "b"}
	token := func(account string, ref *authenticationv1.BoundObjectReference) *Attributes {
		return &Attributes{Operation: Create, Kind: kindOf(&corev1.ServiceAccount{}), Subresource: "token", Namespace: "ns", Name: account,
			Object: &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: ref}}}
	}
	bound := func(pod *corev1.Pod) *authenticationv1.BoundObjectReference {
		return &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}
	}
	audience := func(pod *corev1.Pod, audiences ...string) *Attributes {
		a := token("sa", bound(pod))
		a.Object.(*authenticationv1.TokenRequest).Spec.Audiences = audiences
		return a
	}
	volume := func(v corev1.VolumeSource) *corev1.Pod {
		return mirror(func(p *corev1.Pod) { p.Spec.Volumes = []corev1.Volume{{VolumeSource: v}} })
	}
	projected := func(v corev1.VolumeProjection) *corev1.Pod {
		return volume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{v}}})
	}
	env := func(v corev1.EnvVarSource) *corev1.Pod {
		return mirror(func(p *corev1.Pod) {
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Env: []corev1.EnvVar{{Value: "x"}, {ValueFrom: &v}}}}}
		})
	}
	claim := func(change func(*corev1.PersistentVolumeClaim)) *Attributes {
		old := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c", ResourceVersion: "5"}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}}
		next := old.DeepCopy()
		change(next)
		return sub("status", attributes(Update, next, old))
	}
	request := func(signer, name string) *Attributes {
		return attributes(Create, &certificatesv1.CertificateSigningRequest{ObjectMeta: meta("", "csr"),
			Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: signer, Request: csrOf(t, name, "system:nodes")}}, nil)
	}
	claimed := own.DeepCopy()
	claimed.Status.ResourceClaimStatuses = []corev1.PodResourceClaimStatus{{Name: "gpu"}}
	const onlyClaim = `node "n" is not allowed to update fields of claim "c" other than`
	for name, test := range map[string]struct {
		a    *Attributes
		text string
	}{
		"creates itself with a pod range": {attributes(Create, node(func(n *corev1.Node) { n.Spec.PodCIDR = "10.1.0.0/24" }), nil), "not allowed to set spec.podCIDR"},
		"with pod ranges":                 {attributes(Create, node(func(n *corev1.Node) { n.Spec.PodCIDRs = []string{"10.1.0.0/24"} }), nil), "not allowed to set spec.podCIDRs"},
		"with a provider's id":            {attributes(Create, node(func(n *corev1.Node) { n.Spec.ProviderID = "local://c/m" }), nil), "not allowed to set spec.providerID"},
		"sets its pod range":              {attributes(Update, node(func(n *corev1.Node) { n.Spec.PodCIDR = "10.1.0.0/24" }), node(func(*corev1.Node) {})), "not allowed to modify spec.podCIDR"},
		"adds a pod range":                {attributes(Update, node(func(n *corev1.Node) { n.Spec.PodCIDRs = []string{"a", "b"} }), node(func(n *corev1.Node) { n.Spec.PodCIDRs = []string{"a"} })), "not allowed to modify spec.podCIDRs"},
		"drops its pod range":             {attributes(Update, node(func(*corev1.Node) {}), node(func(n *corev1.Node) { n.Spec.PodCIDR = "10.1.0.0/24" })), "not allowed to modify spec.podCIDR"},
		"sets its provider's id":          {attributes(Update, node(func(n *corev1.Node) { n.Spec.ProviderID = "local://c/m" }), node(func(*corev1.Node) {})), "not allowed to modify spec.providerID"},
		"keeps its pod range":             {attributes(Update, node(func(n *corev1.Node) { n.Spec.PodCIDR = "10.1.0.0/24" }), node(func(n *corev1.Node) { n.Spec.PodCIDR = "10.1.0.0/24" })), ""},
		"creates itself with a taint":     {attributes(Create, node(func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "a"}} }), nil), ""},
		"adds a taint":                    {attributes(Update, node(func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "a"}} }), node(func(*corev1.Node) {})), "not allowed to modify taints"},
		"removes a restricted label":      {attributes(Update, node(func(*corev1.Node) {}), node(func(n *corev1.Node) { n.Labels = map[string]string{"node-restriction.kubernetes.io/a": ""} })), "not allowed to modify labels: node-restriction.kubernetes.io/a"},
		"labels of the kubelet": {attributes(Update, node(func(n *corev1.Node) {
			n.Labels = map[string]string{"x.kubelet.kubernetes.io/a": "", "node.kubernetes.io/b": "", corev1.LabelTopologyZone: "z"}
		}), node(func(*corev1.Node) {})), ""},
		"an unknown label of kubernetes": {attributes(Update, node(func(n *corev1.Node) { n.Labels = map[string]string{"x.k8s.io/a": ""} }), node(func(*corev1.Node) {})), "not allowed to modify labels: x.k8s.io/a"},

		"mirror without an owner":              {attributes(Create, mirror(func(p *corev1.Pod) { p.OwnerReferences = nil }), nil), "owner reference set to itself"},
		"mirror of an older node":              {attributes(Create, mirror(func(p *corev1.Pod) { p.OwnerReferences[0].UID = "n0" }), nil), "UID mismatch"},
		"mirror with an account":               {attributes(Create, mirror(func(p *corev1.Pod) { p.Spec.ServiceAccountName = "sa" }), nil), "reference serviceaccounts"},
		"mirror with a pull secret":            {attributes(Create, mirror(func(p *corev1.Pod) { p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "s"}} }), nil), "reference secrets"},
		"mirror with a resource claim":         {attributes(Create, mirror(func(p *corev1.Pod) { p.Spec.ResourceClaims = []corev1.PodResourceClaim{{}} }), nil), "reference resourceclaims"},
		"mirror with a secret variable":        {attributes(Create, env(corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{}}), nil), "reference secrets"},
		"mirror with a config variable":        {attributes(Create, env(corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{}}), nil), "reference configmaps"},
		"mirror with a claim":                  {attributes(Create, volume(corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{}}), nil), "reference persistentvolumeclaims"},
		"mirror with an ephemeral volume":      {attributes(Create, volume(corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}), nil), "reference persistentvolumeclaims"},
		"mirror with a CSI volume":             {attributes(Create, volume(corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{}}), nil), "reference csidrivers"},
		"mirror with a volume plugin's secret": {attributes(Create, volume(corev1.VolumeSource{ISCSI: &corev1.ISCSIVolumeSource{}}), nil), "reference objects of the volume plugins"},
		"mirror with a token":                  {attributes(Create, projected(corev1.VolumeProjection{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{}}), nil), "reference serviceaccounts"},
		"mirror with a projected secret":       {attributes(Create, projected(corev1.VolumeProjection{Secret: &corev1.SecretProjection{}}), nil), "reference secrets"},
		"mirror with a trust bundle":           {attributes(Create, projected(corev1.VolumeProjection{ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{}}), nil), "reference objects"},
		"mirror with a downwardAPI volume":     {attributes(Create, projected(corev1.VolumeProjection{DownwardAPI: &corev1.DownwardAPIProjection{}}), nil), ""},
		"mirror with a hostPath volume":        {attributes(Create, volume(corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{}}), nil), ""},

		"resource claims through the status": {sub("status", attributes(Update, claimed, own)), "cannot update resource claim statuses"},

		"a claim's capacity": {claim(func(c *corev1.PersistentVolumeClaim) {
			c.Status.Capacity = corev1.ResourceList{"storage": apiresource.MustParse("1Gi")}
		}), ""},
		"a claim's conditions": {claim(func(c *corev1.PersistentVolumeClaim) {
			c.Status.Conditions = []corev1.PersistentVolumeClaimCondition{{Type: "FileSystemResizePending"}}
			c.ResourceVersion = ""
		}), ""},
		"a claim's expansion": {claim(func(c *corev1.PersistentVolumeClaim) {
			c.Status.AllocatedResources = corev1.ResourceList{"storage": apiresource.MustParse("1Gi")}
		}), ""},
		"a claim's phase":      {claim(func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = corev1.ClaimLost }), onlyClaim},
		"a claim's labels":     {claim(func(c *corev1.PersistentVolumeClaim) { c.Labels = map[string]string{"a": "b"} }), onlyClaim},
		"a claim's owners":     {claim(func(c *corev1.PersistentVolumeClaim) { c.OwnerReferences = []metav1.OwnerReference{{Name: "x"}} }), onlyClaim},
		"a claim's finalizers": {claim(func(c *corev1.PersistentVolumeClaim) { c.Finalizers = []string{"a/b"} }), onlyClaim},
		"a claim itself":       {sub("", claim(func(*corev1.PersistentVolumeClaim) {})), "may only update the status of claims"},

		"token of an audience of the pod": {audience(own, "vault"), ""},
		"token of another audience":       {audience(own, "bank"), `not authorized to request tokens for audience "bank"`},
		"token of two audiences":          {audience(own, "", "vault"), "may only request 0 or 1 audiences"},
		"token of a granted audience":     {audience(own, "granted"), ""},
		"token of a pod that mounts none": {audience(mute), `not authorized to request tokens for audience ""`},

		"its own certificate":          {request(certificatesv1.KubeAPIServerClientKubeletSignerName, "system:node:n"), ""},
		"another node's certificate":   {request(certificatesv1.KubeAPIServerClientKubeletSignerName, "system:node:m"), "can only create a node CSR with CN=system:node:n"},
		"another's serving name":       {request(certificatesv1.KubeletServingSignerName, "system:node:m"), "can only create a node CSR with CN=system:node:n"},
		"another signer's certificate": {request("example.com/x", "anything"), ""},

		"creates a pod":          {attributes(Create, own, nil), "can only create mirror pods"},
		"creates a mirror":       {attributes(Create, mirror(func(*corev1.Pod) {}), nil), ""},
		"mirror on another node": {attributes(Create, mirror(func(p *corev1.Pod) { p.Spec.NodeName = "m" }), nil), "can only create pods with spec.nodeName set to itself"},
		"mirror with a secret": {attributes(Create, mirror(func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{}}}}
		}), nil), "can not create pods that reference secrets"},
		"mirror owned by another node": {attributes(Create, mirror(func(p *corev1.Pod) {
			p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "m"}}
		}), nil), "owner reference set to itself"},
		"updates a pod":                  {attributes(Update, own, own), "can only create and delete mirror pods"},
		"deletes its pod":                {attributes(Delete, nil, own), ""},
		"deletes another's":              {attributes(Delete, nil, other), "can only delete pods with spec.nodeName set to itself"},
		"status of its pod":              {sub("status", attributes(Update, own, own)), ""},
		"status of another's":            {sub("status", attributes(Update, other, other)), "can only update status for pods with spec.nodeName set to itself"},
		"labels through the status":      {sub("status", attributes(Update, labelled, own)), "cannot update labels through pod status"},
		"evicts its pod":                 {sub("eviction", attributes(Delete, nil, own)), ""},
		"evicts another's":               {sub("eviction", attributes(Delete, nil, other)), "can only evict pods"},
		"binds a pod":                    {sub("binding", attributes(Create, own, nil)), "unexpected pod subresource"},
		"creates itself":                 {attributes(Create, node(func(n *corev1.Node) { n.Labels = map[string]string{corev1.LabelHostname: "n", "example.com/x": "y"} }), nil), ""},
		"creates another":                {attributes(Create, &corev1.Node{ObjectMeta: meta("", "m")}, nil), `node "n" is not allowed to modify node "m"`},
		"labels itself as control plane": {attributes(Create, node(func(n *corev1.Node) { n.Labels = map[string]string{"node-role.kubernetes.io/control-plane": ""} }), nil), "not allowed to set the following labels: node-role.kubernetes.io/control-plane"},
		"restricted label":               {attributes(Update, node(func(n *corev1.Node) { n.Labels = map[string]string{"x.node-restriction.kubernetes.io/a": ""} }), node(func(*corev1.Node) {})), "not allowed to modify labels: x.node-restriction.kubernetes.io/a"},
		"removes its taint":              {attributes(Update, node(func(*corev1.Node) {}), node(func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "a"}} })), "not allowed to modify taints"},
		"sets its owner":                 {attributes(Update, node(func(n *corev1.Node) { n.OwnerReferences = []metav1.OwnerReference{{Name: "x"}} }), node(func(*corev1.Node) {})), "not allowed to modify ownerReferences"},
		"its status":                     {sub("status", attributes(Update, node(func(*corev1.Node) {}), node(func(*corev1.Node) {}))), ""},
		"its lease":                      {attributes(Create, &coordinationv1.Lease{ObjectMeta: meta("kube-node-lease", "n")}, nil), ""},
		"another's lease":                {attributes(Update, &coordinationv1.Lease{ObjectMeta: meta("kube-node-lease", "m")}, nil), "same name as the requesting node"},
		"a lease in another namespace":   {attributes(Create, &coordinationv1.Lease{ObjectMeta: meta("ns", "n")}, nil), "can only access leases in the"},
		"token of its pod":               {token("sa", bound(own)), ""},
		"token of another account":       {token("other", bound(own)), "does not use"},
		"token of another's pod":         {token("sa", bound(other)), "scheduled on a different node"},
		"unbound token":                  {token("sa", nil), "not bound to a pod"},
		"token of an older pod":          {token("sa", &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "own", UID: "0"}), "does not match the UID in record"},
	} {
		test.a.User.Name = "system:node:n"
		refused(t, name, p.Validate(t.Context(), test.a), test.text)
		test.a.User.Name = "jane"
		refused(t, name+" (not a node)", p.Validate(t.Context(), test.a), "")
	}
}

func TestPodTopology(t *testing.T) {
	p := &PodTopology{State: state(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{corev1.LabelTopologyZone: "z", "other": "x"}}})}
	b := &corev1.Binding{Target: corev1.ObjectReference{Name: "n"}}
	a := &Attributes{Operation: Create, Kind: kindOf(&corev1.Pod{}), Subresource: "binding", Object: b}
	if refused(t, "binding", p.Admit(t.Context(), a), ""); len(b.Labels) != 1 || b.Labels[corev1.LabelTopologyZone] != "z" {
		t.Errorf("%v", b.Labels)
	}
}

// TestOrder runs the whole default chain on a pod.
func TestOrder(t *testing.T) {
	s := state(&corev1.Namespace{ObjectMeta: meta("", "ns")}, &corev1.ServiceAccount{ObjectMeta: meta("ns", "default")})
	chain := Default(Config{State: s, Authorizer: granter{}, Escalation: &escalation{}, NodeOf: func(request.User) (string, bool) { return "", false }})
	pod := &corev1.Pod{ObjectMeta: meta("ns", "p"), Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}}
	a := attributes(Create, pod, nil)
	refused(t, "admit", chain.Admit(t.Context(), a), "")
	refused(t, "validate", chain.Validate(t.Context(), a), "")
	if pod.Spec.Priority == nil || pod.Spec.ServiceAccountName == "" || len(pod.Spec.Tolerations) != 2 {
		t.Errorf("%+v", pod.Spec)
	}
	none := &corev1.Pod{ObjectMeta: meta("none", "p")}
	refused(t, "namespace first", chain.Admit(t.Context(), attributes(Create, none, nil)), `namespaces "none" not found`)
	refused(t, "no chain", (*Chain)(nil).Admit(t.Context(), a), "")
}

func sameType(a, b any) bool { return reflect.TypeOf(a) == reflect.TypeOf(b) }
