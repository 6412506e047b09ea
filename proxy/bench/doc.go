// Package bench measures the proxy beside what else can stand in its place:
// the floor, which is a plain crypto/tls copy loop, httputil.ReverseProxy for
// requests, and Debian's nginx (stream module) and HAProxy. All are processes
// of their own in one run, in interleaved rounds, on loopback, with the same
// certificates; a figure is the median of its rounds. Ghostunnel, of which the
// project's table has figures too, can't be in the repository: Debian 12 has no
// package of it, and the project doesn't depend on what it is measured beside.
// The floor is the least that it does.
//
// CPU is what the kernel counted for the measured process, so the figures
// hold on a machine that does other things as well; latencies and rates are
// wall-clock time, and want a quiet one. The client is the benchmark's
// process, the application is another.
//
// With AVAL_BENCH_PROFILE set to a directory, each proxy leaves a CPU profile
// there. The package has no code but its tests and is imported by nobody.
package bench
