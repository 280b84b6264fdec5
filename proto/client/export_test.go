package client

import "time"

// SetLinger sets how long a closed connection to a pod may take to deliver what was written.
func SetLinger(d time.Duration) (restore func()) {
	before := lingerTime
	lingerTime = d
	return func() { lingerTime = before }
}

// InClusterFrom is InCluster with another environment and folder.
func InClusterFrom(getenv func(string) string, dir string) (Config, error) {
	return inCluster(getenv, dir)
}
