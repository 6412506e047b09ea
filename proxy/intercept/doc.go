// Package intercept sends connections through a proxy without the
// application's knowledge: the rules of one network namespace that redirect
// them, and the question where a redirected connection was going.
//
// It owns one nftables table, inet aval, or where only iptables exists two
// chains, AVAL_INBOUND and AVAL_OUTBOUND, and touches nothing else: Setup
// replaces exactly these, Cleanup removes exactly these. What happens to a
// connection that arrives is the proxy's business. It stands on the second
// floor, inside proxy, and imports the standard library and x/sys alone.
package intercept
