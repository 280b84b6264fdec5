package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/owner"
	"keelson.dev/services/controller-manager/internal/perturb"
	"keelson.dev/services/controller-manager/internal/podstate"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
	"keelson.dev/services/internal/fence"
)

var (
	app      = map[string]string{"app": "web"}
	selector = &metav1.LabelSelector{MatchLabels: app}
)

func of[T any](v T) *T { return &v }

func named(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: "default", Name: name}
}

func template(image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: app},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: of(int64(30)),
			Containers: []corev1.Container{{Name: "c", Image: image}},
		},
	}
}

// stored returns the objects of a type, sorted by name.
func stored[T client.Object](objects []client.Object) []T {
	var out []T
	for _, obj := range objects {
		if obj, ok := obj.(T); ok && !strings.HasPrefix(obj.GetName(), perturb.Bystander) {
			out = append(out, obj)
		}
	}
	slices.SortFunc(out, func(a, b T) int {
		return strings.Compare(a.GetNamespace()+"/"+a.GetName(), b.GetNamespace()+"/"+b.GetName())
	})
	return out
}

// kubelet binds pods, reports them as ready, and removes those that were deleted.
func kubelet(w *perturb.World) (changed bool) {
	pods := client.For[*corev1.Pod](w.Client)
	for _, p := range stored[*corev1.Pod](w.Server.Objects()) {
		var err error
		switch {
		case p.DeletionTimestamp != nil && (p.DeletionGracePeriodSeconds == nil || *p.DeletionGracePeriodSeconds > 0):
			err = pods.Delete(w.Context(), p.Namespace, p.Name, client.Grace(0), client.UID(p.UID))
		case p.DeletionTimestamp != nil:
			continue
		case p.Spec.NodeName == "":
			target := cluster.TargetNode(p)
			if target == "" {
				target = "node-1"
			}
			err = client.Bind(w.Context(), w.Client, p, target)
		case p.Status.Phase == "":
			_, err = pods.UpdateStatus(w.Context(), Ready(p))
		default:
			continue
		}
		// A controller may have deleted it meanwhile.
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			w.Errorf("kubelet: pod %s: %v", p.Name, err)
		}
		changed = true
	}
	return changed
}

// ending ends pods that run as f says; an empty phase lets a pod run on.
func ending(f func(objects []client.Object, p *corev1.Pod) corev1.PodPhase) func(*perturb.World) bool {
	return func(w *perturb.World) (changed bool) {
		for _, p := range stored[*corev1.Pod](w.Server.Objects()) {
			if p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil {
				continue
			}
			phase := f(w.Server.Objects(), p)
			if phase == "" {
				continue
			}
			p = p.DeepCopy()
			p.Status.Phase, p.Status.Conditions = phase, nil
			if _, err := client.For[*corev1.Pod](w.Client).UpdateStatus(w.Context(), p); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				w.Errorf("end pod %s: %v", p.Name, err)
			}
			changed = true
		}
		return changed
	}
}

func newNode(w *perturb.World, name string) {
	Create(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}})
}

func newNamespace(w *perturb.World, name string) {
	Create(w, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
}

// waits lets time pass on the scenario's virtual clock.
func waits(d time.Duration) func(*perturb.World) { return func(*perturb.World) { <-time.After(d) } }

// available returns a bound on how few pods of the app may be available once as many were.
func available(least int) func([]client.Object) error {
	return func(objects []client.Object) error {
		ready := 0
		for _, p := range stored[*corev1.Pod](objects) {
			if podstate.Active(p) && podstate.Ready(p) {
				ready++
			}
		}
		for _, d := range stored[*appsv1.Deployment](objects) {
			if d.Spec.Template.Annotations["rolling"] != "" && ready < least {
				return fmt.Errorf("%d pods are available, want at least %d", ready, least)
			}
		}
		return nil
	}
}

// parallel returns an error if a job has more active pods than it may.
func parallel(objects []client.Object) error {
	for _, j := range stored[*batchv1.Job](objects) {
		active := 0
		for _, p := range stored[*corev1.Pod](objects) {
			if metav1.IsControlledBy(p, j) && podstate.Active(p) {
				active++
			}
		}
		if active > int(*j.Spec.Parallelism) {
			return fmt.Errorf("%d pods of job %s are active, want at most %d", active, j.Name, *j.Spec.Parallelism)
		}
	}
	return nil
}

// identities returns an error if two pods have the same identity in a StatefulSet, or if an
// object was given to two owners.
func identities(objects []client.Object) error {
	seen := map[string]string{}
	for _, p := range stored[*corev1.Pod](objects) {
		ordinal := p.Labels[appsv1.PodIndexLabel]
		if other := seen[ordinal]; ordinal != "" && other != "" {
			return fmt.Errorf("pods %s and %s have the same identity", other, p.Name)
		}
		seen[ordinal] = p.Name
	}
	return nil
}

// scenarios has one scenario for each name in the catalogue.
var scenarios = map[string]*perturb.Scenario{
	"deployment-controller": {
		Controllers: []string{"deployment-controller", "replicaset-controller"},
		Others:      []func(*perturb.World) bool{kubelet},
		Bounds:      available(2),
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				Create(w, &appsv1.Deployment{ObjectMeta: named("web"), Spec: appsv1.DeploymentSpec{
					Replicas: of(int32(2)), Selector: selector, Template: template("v1"), RevisionHistoryLimit: of(int32(1)), ProgressDeadlineSeconds: of(int32(600)),
					Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{
						MaxSurge: of(intstr.FromInt32(1)), MaxUnavailable: of(intstr.FromInt32(0)),
					}},
				}})
			},
			func(w *perturb.World) {
				Update(w, "default", "web", func(d *appsv1.Deployment) {
					d.Spec.Template.Annotations = map[string]string{"rolling": "yes"}
				})
			},
			func(w *perturb.World) {
				Update(w, "default", "web", func(d *appsv1.Deployment) {
					d.Spec.Replicas = of(int32(1))
					d.Spec.Template.Annotations = nil
				})
			},
		},
	},
	"replicaset-controller": {
		Others: []func(*perturb.World) bool{kubelet},
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				Create(w, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "orphan", Labels: app, Annotations: map[string]string{corev1.PodDeletionCost: "9"}}, Spec: template("v1").Spec})
				Create(w, &appsv1.ReplicaSet{ObjectMeta: named("web"), Spec: appsv1.ReplicaSetSpec{Replicas: of(int32(3)), Selector: selector, Template: template("v1")}})
			},
			func(w *perturb.World) {
				Update(w, "default", "orphan", func(p *corev1.Pod) { p.Labels = map[string]string{"app": "other"} })
			},
			func(w *perturb.World) {
				Update(w, "default", "web", func(rs *appsv1.ReplicaSet) { rs.Spec.Replicas = of(int32(1)) })
			},
		},
	},
	"replicationcontroller-controller": {
		Others: []func(*perturb.World) bool{kubelet},
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				Create(w, &corev1.ReplicationController{ObjectMeta: named("web"), Spec: corev1.ReplicationControllerSpec{
					Replicas: of(int32(2)), Selector: app, Template: of(template("v1")),
				}})
			},
			func(w *perturb.World) {
				Update(w, "default", "web", func(rc *corev1.ReplicationController) { rc.Spec.Replicas = of(int32(1)) })
			},
		},
	},
	"daemonset-controller": {
		Others: []func(*perturb.World) bool{kubelet},
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				newNode(w, "node-1")
				newNode(w, "node-2")
				Create(w, &appsv1.DaemonSet{ObjectMeta: named("web"), Spec: appsv1.DaemonSetSpec{
					Selector: selector, Template: template("v1"), RevisionHistoryLimit: of(int32(1)),
					UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType},
				}})
			},
			func(w *perturb.World) { newNode(w, "node-3") },
			func(w *perturb.World) {
				Update(w, "default", "web", func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.Containers[0].Image = "v2" })
			},
			func(w *perturb.World) { Delete[*corev1.Node](w, "", "node-2") },
		},
	},
	"statefulset-controller": {
		Others:    []func(*perturb.World) bool{kubelet},
		Invariant: identities,
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				Create(w, &appsv1.StatefulSet{ObjectMeta: named("web"), Spec: appsv1.StatefulSetSpec{
					Replicas: of(int32(3)), Selector: selector, Template: template("v1"), RevisionHistoryLimit: of(int32(1)),
					UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType},
					PersistentVolumeClaimRetentionPolicy: &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{
						WhenDeleted: appsv1.DeletePersistentVolumeClaimRetentionPolicyType, WhenScaled: appsv1.RetainPersistentVolumeClaimRetentionPolicyType,
					},
					VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}},
				}})
			},
			func(w *perturb.World) {
				Update(w, "default", "web", func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = "v2" })
			},
			func(w *perturb.World) {
				Update(w, "default", "web", func(s *appsv1.StatefulSet) { s.Spec.Replicas = of(int32(1)) })
			},
		},
	},
	"job-controller": {
		// A pod that is created for a job which has been deleted is garbage.
		Controllers: []string{"job-controller", "garbage-collector-controller"},
		Others: []func(*perturb.World) bool{kubelet, ending(func(objects []client.Object, p *corev1.Pod) corev1.PodPhase {
			for _, j := range stored[*batchv1.Job](objects) {
				if !metav1.IsControlledBy(p, j) {
					continue
				}
				// The first pod fails.
				failed := j.Status.Failed
				if u := j.Status.UncountedTerminatedPods; u != nil {
					failed += int32(len(u.Failed))
				}
				for _, other := range stored[*corev1.Pod](objects) {
					if metav1.IsControlledBy(other, j) && other.Status.Phase == corev1.PodFailed {
						failed++
					}
				}
				if j.Name == "work" && failed == 0 {
					return corev1.PodFailed
				}
				if j.Name == "endless" {
					return ""
				}
				return corev1.PodSucceeded
			}
			return ""
		})},
		Bounds: parallel,
		Rest:   2 * time.Minute,
		Steps: []func(*perturb.World){
			func(w *perturb.World) { Create(w, work("work", 2, 3)) },
			func(w *perturb.World) {
				j := work("indexed", 2, 3)
				j.Spec.CompletionMode = of(batchv1.IndexedCompletion)
				Create(w, j)
			},
			func(w *perturb.World) { Create(w, work("endless", 2, 2)) },
			func(w *perturb.World) {
				Update(w, "default", "endless", func(j *batchv1.Job) { j.Spec.Suspend = of(true) })
			},
			func(w *perturb.World) { Delete[*batchv1.Job](w, "default", "indexed") },
		},
	},
	"ttl-after-finished-controller": {
		Rest: 3 * time.Minute,
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				for _, name := range []string{"ours", "managed", "kept"} {
					j := work(name, 1, 1)
					j.Spec.TTLSecondsAfterFinished = of(int32(60))
					switch name {
					case "managed":
						j.Spec.ManagedBy = of("example.com/other")
					case "kept":
						j.Spec.TTLSecondsAfterFinished = nil
					}
					Create(w, j)
					Update(w, "default", name, func(j *batchv1.Job) {
						j.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobComplete, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}}
					}, client.Subresource("status"))
				}
			},
		},
	},
	"cronjob-controller": {
		Others: []func(*perturb.World) bool{func(w *perturb.World) (changed bool) {
			for _, j := range stored[*batchv1.Job](w.Server.Objects()) {
				if len(j.Status.Conditions) > 0 {
					continue
				}
				Update(w, "default", j.Name, func(j *batchv1.Job) {
					now := metav1.Now()
					j.Status.CompletionTime = &now
					j.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobComplete, Status: corev1.ConditionTrue}}
				}, client.Subresource("status"))
				changed = true
			}
			return changed
		}},
		Rest: 5 * time.Minute,
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				Create(w, &batchv1.CronJob{ObjectMeta: named("tick"), Spec: batchv1.CronJobSpec{
					Schedule: "0 * * * *", ConcurrencyPolicy: batchv1.ForbidConcurrent, SuccessfulJobsHistoryLimit: of(int32(1)),
					JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: template("v1")}},
				}})
			},
			waits(time.Hour),
			waits(time.Hour),
			func(w *perturb.World) {
				Update(w, "default", "tick", func(cj *batchv1.CronJob) { cj.Spec.Suspend = of(true) })
			},
		},
	},
	"disruption-controller": {
		Rest: 5 * time.Minute,
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				rs := Create(w, &appsv1.ReplicaSet{ObjectMeta: named("web"), Spec: appsv1.ReplicaSetSpec{Replicas: of(int32(2)), Selector: selector, Template: template("v1")}})
				for i := range 2 {
					p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("web-", i), Labels: app, OwnerReferences: []metav1.OwnerReference{owner.Reference(rs)}}}
					p = Create(w, p)
					p = Ready(p)
					if _, err := client.For[*corev1.Pod](w.Client).UpdateStatus(w.Context(), p); err != nil {
						w.Fatal(err)
					}
				}
				Create(w, &policyv1.PodDisruptionBudget{ObjectMeta: named("web"), Spec: policyv1.PodDisruptionBudgetSpec{Selector: selector, MaxUnavailable: of(intstr.FromInt32(1))}})
			},
			func(w *perturb.World) {
				Update(w, "default", "web-1", func(p *corev1.Pod) {
					p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()})
				}, client.Subresource("status"))
			},
			func(w *perturb.World) { Delete[*corev1.Pod](w, "default", "web-0") },
		},
	},
	"resourcequota-controller": {
		Rest: 7 * time.Minute,
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				newNamespace(w, "limited")
				Create(w, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "limited", Name: "q"}, Spec: corev1.ResourceQuotaSpec{
					Hard: corev1.ResourceList{"pods": resource.MustParse("3"), "count/configmaps": resource.MustParse("3")},
				}})
			},
			func(w *perturb.World) {
				Create(w, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "limited", Name: "p"}})
				Create(w, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "limited", Name: "c"}})
			},
			func(w *perturb.World) { Delete[*corev1.ConfigMap](w, "limited", "c") },
		},
	},
	"endpointslice-controller": {
		Others: []func(*perturb.World) bool{kubelet},
		Steps:  serving(),
	},
	"endpoints-controller": {
		Others: []func(*perturb.World) bool{kubelet},
		Steps:  serving(),
	},
	"endpointslice-mirroring-controller": {
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				Create(w, &corev1.Service{ObjectMeta: named("db"), Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 5432}}}})
				Create(w, &corev1.Endpoints{ObjectMeta: named("db"), Subsets: []corev1.EndpointSubset{{ //nolint:staticcheck // still served.
					Addresses: []corev1.EndpointAddress{{IP: "192.0.2.1"}}, Ports: []corev1.EndpointPort{{Port: 5432}}, //nolint:staticcheck // as above.
				}}})
			},
			func(w *perturb.World) {
				Update(w, "default", "db", func(e *corev1.Endpoints) { //nolint:staticcheck // as above.
					e.Subsets[0].Addresses = append(e.Subsets[0].Addresses, corev1.EndpointAddress{IP: "192.0.2.2"}) //nolint:staticcheck // as above.
				})
			},
			func(w *perturb.World) { Delete[*corev1.Endpoints](w, "default", "db") }, //nolint:staticcheck // as above.
		},
	},
	"namespace-controller": {
		Others: []func(*perturb.World) bool{kubelet},
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				newNamespace(w, "shop")
				Create(w, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}, Spec: template("v1").Spec})
				Create(w, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "c"}})
				Create(w, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s", Finalizers: []string{"example.com/hold"}}})
			},
			func(w *perturb.World) { Delete[*corev1.Namespace](w, "", "shop") },
			func(w *perturb.World) {
				Update(w, "shop", "s", func(s *corev1.Secret) { s.Finalizers = nil })
			},
		},
	},
	"garbage-collector-controller": {
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				for _, name := range []string{"back", "fore", "free"} {
					top := Create(w, &corev1.ConfigMap{ObjectMeta: named(name)})
					for i := range 2 {
						meta := named(fmt.Sprint(name, "-", i))
						meta.OwnerReferences = []metav1.OwnerReference{owner.Reference(top)}
						mid := Create(w, &corev1.Secret{ObjectMeta: meta})
						meta.Name += "-leaf"
						meta.OwnerReferences = []metav1.OwnerReference{owner.Reference(mid)}
						Create(w, &coordinationv1.Lease{ObjectMeta: meta})
					}
				}
			},
			func(w *perturb.World) { Delete[*corev1.ConfigMap](w, "default", "back") },
			func(w *perturb.World) {
				Delete[*corev1.ConfigMap](w, "default", "fore", client.Propagation(metav1.DeletePropagationForeground))
			},
			func(w *perturb.World) {
				Delete[*corev1.ConfigMap](w, "default", "free", client.Propagation(metav1.DeletePropagationOrphan))
			},
		},
	},
	"serviceaccount-controller": {
		Steps: []func(*perturb.World){
			func(w *perturb.World) { newNamespace(w, "one") },
			func(w *perturb.World) { Delete[*corev1.ServiceAccount](w, "one", "default") },
		},
	},
	"serviceaccount-token-controller": {
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				for _, name := range []string{"kept", "dropped"} {
					Create(w, &corev1.ServiceAccount{ObjectMeta: named(name)})
					Create(w, &corev1.Secret{Type: corev1.SecretTypeServiceAccountToken, ObjectMeta: metav1.ObjectMeta{
						Namespace: "default", Name: name, Annotations: map[string]string{corev1.ServiceAccountNameKey: name},
					}})
				}
			},
			func(w *perturb.World) { Delete[*corev1.ServiceAccount](w, "default", "dropped") },
		},
	},
	"token-cleaner-controller": {
		Rest: 3 * time.Minute,
		Steps: []func(*perturb.World){func(w *perturb.World) {
			for name, left := range map[string]time.Duration{"short": time.Minute, "long": 100 * time.Hour} {
				Create(w, &corev1.Secret{
					ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: name}, Type: corev1.SecretTypeBootstrapToken,
					Data: map[string][]byte{"expiration": []byte(time.Now().Add(left).Format(time.RFC3339))},
				})
			}
		}},
	},
	"root-ca-certificate-publisher-controller": {
		Steps: []func(*perturb.World){
			func(w *perturb.World) { newNamespace(w, "one") },
			func(w *perturb.World) {
				Update(w, "one", "kube-root-ca.crt", func(cm *corev1.ConfigMap) { cm.Data = nil })
			},
			func(w *perturb.World) { Delete[*corev1.ConfigMap](w, "one", "kube-root-ca.crt") },
		},
	},
	"clusterrole-aggregation-controller": {
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				Create(w, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "sum"}, AggregationRule: &rbacv1.AggregationRule{
					ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"part": "yes"}}},
				}})
				Create(w, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "part", Labels: map[string]string{"part": "yes"}}, Rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}}}})
			},
			func(w *perturb.World) {
				Update(w, "", "part", func(r *rbacv1.ClusterRole) { r.Rules = []rbacv1.PolicyRule{{Verbs: []string{"list"}}} })
			},
		},
	},
	"node-ipam-controller": {
		Steps: []func(*perturb.World){
			func(w *perturb.World) { newNode(w, "node-1") },
			func(w *perturb.World) { newNode(w, "node-2") },
			func(w *perturb.World) { Delete[*corev1.Node](w, "", "node-1") },
			func(w *perturb.World) { newNode(w, "node-3") },
		},
		Invariant: func(objects []client.Object) error {
			ranges := map[string]string{}
			for _, n := range stored[*corev1.Node](objects) {
				if other := ranges[n.Spec.PodCIDR]; n.Spec.PodCIDR != "" && other != "" {
					return fmt.Errorf("nodes %s and %s have the same range", other, n.Name)
				}
				ranges[n.Spec.PodCIDR] = n.Name
			}
			return nil
		},
	},
	"ttl-controller": {
		Steps: []func(*perturb.World){
			func(w *perturb.World) { newNode(w, "node-1") },
			func(w *perturb.World) {
				Update(w, "", "node-1", func(n *corev1.Node) { delete(n.Annotations, corev1.ObjectTTLAnnotationKey) })
			},
		},
	},
	"node-lifecycle-controller": {
		Rest: 10 * time.Minute,
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				newNode(w, "node-1")
				Update(w, "", "node-1", func(n *corev1.Node) {
					n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
				}, client.Subresource("status"))
				Create(w, &corev1.Pod{ObjectMeta: named("p"), Spec: corev1.PodSpec{NodeName: "node-1"}})
				Update(w, "default", "p", func(p *corev1.Pod) {
					p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
				}, client.Subresource("status"))
			},
			func(w *perturb.World) {
				Update(w, "", "node-1", func(n *corev1.Node) {
					n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}, {Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue}}
				}, client.Subresource("status"))
			},
		},
	},
	"taint-eviction-controller": {
		Rest: 5 * time.Minute,
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				newNode(w, "node-1")
				for name, tolerations := range map[string][]corev1.Toleration{
					"none": nil, "short": {{Operator: corev1.TolerationOpExists, TolerationSeconds: of(int64(60))}}, "all": {{Operator: corev1.TolerationOpExists}},
				} {
					Create(w, &corev1.Pod{ObjectMeta: named(name), Spec: corev1.PodSpec{NodeName: "node-1", Tolerations: tolerations}})
				}
			},
			func(w *perturb.World) {
				Update(w, "", "node-1", func(n *corev1.Node) {
					n.Spec.Taints = []corev1.Taint{{Key: "down", Effect: corev1.TaintEffectNoExecute, TimeAdded: of(metav1.Now())}}
				})
			},
		},
	},
	"fencing-controller": {
		Rest: 3 * time.Minute,
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				promise := fence.Promise{After: 20 * time.Second}
				for _, name := range []string{"promised", "other"} {
					p := Create(w, &corev1.Pod{ObjectMeta: named(name), Spec: corev1.PodSpec{NodeName: "node-1"}})
					if name == "promised" {
						promise.Pods = append(promise.Pods, p.UID)
					}
				}
				Create(w, &coordinationv1.Lease{
					ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: "node-1", Annotations: promise.Put(nil)},
					Spec:       coordinationv1.LeaseSpec{RenewTime: of(metav1.NowMicro())},
				})
			},
		},
	},
	"horizontal-pod-autoscaler-controller": {
		// Longer than it remembers what it recommended.
		Rest: 10 * time.Minute,
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				Create(w, &appsv1.Deployment{ObjectMeta: named("web"), Spec: appsv1.DeploymentSpec{Replicas: of(int32(5)), Selector: selector, Template: template("v1")}})
				Create(w, &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: named("web"), Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
					ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "web"}, MaxReplicas: 3,
				}})
			},
			func(w *perturb.World) {
				Update(w, "default", "web", func(a *autoscalingv2.HorizontalPodAutoscaler) { a.Spec.MaxReplicas = 2 })
			},
		},
	},
	"pod-garbage-collector-controller": {
		Rest: 3 * time.Minute,
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				newNode(w, "node-1")
				for _, name := range []string{"bound", "held"} {
					Create(w, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Finalizers: []string{"example.com/hold"}}, Spec: corev1.PodSpec{NodeName: "node-1", TerminationGracePeriodSeconds: of(int64(30))}})
				}
			},
			func(w *perturb.World) { Delete[*corev1.Node](w, "", "node-1") },
			func(w *perturb.World) {
				Update(w, "default", "bound", func(p *corev1.Pod) { p.Finalizers = nil })
			},
		},
	},
	"persistentvolume-binder-controller": {
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				newNode(w, "node-1")
				Create(w, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fast"}, Provisioner: "keelson.dev/local", ReclaimPolicy: of(corev1.PersistentVolumeReclaimDelete), VolumeBindingMode: of(storagev1.VolumeBindingImmediate)})
				Create(w, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "by-hand", Finalizers: []string{"kubernetes.io/pv-protection"}}, Spec: corev1.PersistentVolumeSpec{
					Capacity: corev1.ResourceList{"storage": resource.MustParse("2Gi")}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
					StorageClassName: "slow", PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
				}})
				for _, class := range []string{"fast", "slow"} {
					Create(w, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: class, Finalizers: []string{"kubernetes.io/pvc-protection"}}, Spec: corev1.PersistentVolumeClaimSpec{
						StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
						Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse("1Gi")}},
					}})
				}
			},
			func(w *perturb.World) {
				Delete[*corev1.PersistentVolumeClaim](w, "default", "fast")
				Delete[*corev1.PersistentVolumeClaim](w, "default", "slow")
			},
		},
	},
	"default-storageclass-controller": {Steps: []func(*perturb.World){func(*perturb.World) {}}},
	"certificatesigningrequest-signing-controller": {
		Steps: []func(*perturb.World){
			func(w *perturb.World) {
				Create(w, &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: "r"}, Spec: certificatesv1.CertificateSigningRequestSpec{
					Request: csrPEM, SignerName: certificatesv1.KubeAPIServerClientSignerName, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth, certificatesv1.UsageDigitalSignature},
				}})
			},
			func(w *perturb.World) {
				Update(w, "", "r", func(r *certificatesv1.CertificateSigningRequest) {
					r.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, LastUpdateTime: metav1.Now()}}
				}, client.Subresource("approval"))
			},
			waits(2 * time.Hour),
		},
	},
}

func work(name string, parallelism, completions int32) *batchv1.Job {
	t := template("v1")
	t.Spec.RestartPolicy = corev1.RestartPolicyNever
	t.Labels = map[string]string{"job": name}
	return &batchv1.Job{ObjectMeta: named(name), Spec: batchv1.JobSpec{
		Parallelism: &parallelism, Completions: &completions, Selector: &metav1.LabelSelector{MatchLabels: t.Labels}, Template: t,
	}}
}

// serving are the steps of a service that gets and loses pods and ports.
func serving() []func(*perturb.World) {
	return []func(*perturb.World){
		func(w *perturb.World) {
			Create(w, &corev1.Service{ObjectMeta: named("web"), Spec: corev1.ServiceSpec{Selector: app, ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}}}})
			for i := range 2 {
				Create(w, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("web-", i), Labels: app}, Spec: template("v1").Spec})
			}
		},
		func(w *perturb.World) {
			Update(w, "default", "web", func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromInt32(9090) })
		},
		func(w *perturb.World) { Delete[*corev1.Pod](w, "default", "web-0") },
		func(w *perturb.World) { Delete[*corev1.Service](w, "default", "web") },
	}
}

// csrPEM is a request for a client certificate.
var csrPEM = func() []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "someone"}}, key)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}()

// signingKey writes a key for service account tokens.
func signingKey(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "sa.key")
	writeKey(t, file, key)
	return file
}

func writeKey(t *testing.T, file string, key *ecdsa.PrivateKey) {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// authority writes a CA that is valid at the time of a synctest bubble.
func authority(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	writeKey(t, filepath.Join(dir, "ca.key"), key)
	return dir
}
