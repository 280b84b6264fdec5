package resource

// DefaultsVersion numbers the defaults of all kinds. Objects that were stored with the same
// version have all of their defaults; for others, defaults are applied whenever the object is
// decoded. Increase it with each change of a default: kind's TestDefaultsVersion fails until
// then. It is never 0, which is the version of objects that Kubernetes stored.
const DefaultsVersion uint64 = 3
