/*
 * Carries out a list of system calls in a new process.
 *
 * The keeper decides in Python what a new process does, and writes it down as steps (nestbed.process.program). This is all that runs
 * between clone and exec: it knows no container, takes no decision of its own, allocates nothing, and uses neither a library nor any
 * memory but its stack, the steps, and what they point to. So a clone needs a few pages instead of a copy of a Python interpreter,
 * and whoever looks into it finds nothing of the keeper's (docs/decisions/0006-a-runner-in-c.md).
 */
#include <stdint.h>

#if !defined(__linux__) || !(defined(__x86_64__) || defined(__aarch64__))
#error "nestbed needs Linux on x86-64 or arm64"
#endif

enum kind {
	CALL,  /* make system call `number`; its result goes to register `keep`, a tolerated error as -errno */
	STORE, /* arguments: address, value; stores a 32-bit number */
	LOAD,  /* arguments: address, mask; the 64-bit number there, masked, goes to register `keep` */
	WHEN,  /* arguments: two values; if they are equal, `skip` steps are passed over */
	FAIL,  /* argument: errno; ends the process, reporting it */
};

struct step {
	uint16_t kind;
	uint16_t registers;   /* bit i: argument i is the number of a register, whose content is meant */
	int16_t keep;         /* register for the result; -1: none */
	int16_t skip;         /* steps to pass over after a tolerated error */
	uint32_t number;
	uint32_t label;       /* what the report of a failure calls this step */
	uint64_t tolerated[2]; /* bit e: the error e is no failure */
	int64_t arguments[6];
};

struct program {
	const struct step *steps;
	int32_t count;
	int32_t error_fd;
};

struct report {
	uint32_t label;
	int32_t number;
};

enum {
	REGISTERS = 256,
	ARGUMENTS = 6,
	TRIES = 128, /* of a look-up that a mount or rename anywhere on the machine disturbed: often, but not for ever */
	FAILED = 127, /* exit code of a process that did not come to its end */
	EINTR = 4,
	EAGAIN = 11,
	NR_CLONE3 = 435,
	NR_OPENAT2 = 437,
#if defined(__x86_64__)
	NR_WRITE = 1,
	NR_EXIT_GROUP = 231,
#else
	NR_WRITE = 64,
	NR_EXIT_GROUP = 94,
#endif
};

static inline int64_t call(int64_t number, const int64_t *arguments)
{
#if defined(__x86_64__)
	register int64_t fourth __asm__("r10") = arguments[3];
	register int64_t fifth __asm__("r8") = arguments[4];
	register int64_t sixth __asm__("r9") = arguments[5];
	int64_t result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(arguments[0]), "S"(arguments[1]), "d"(arguments[2]), "r"(fourth), "r"(fifth), "r"(sixth)
			 : "rcx", "r11", "memory");
	return result;
#else
	register int64_t which __asm__("x8") = number;
	register int64_t first __asm__("x0") = arguments[0];
	register int64_t second __asm__("x1") = arguments[1];
	register int64_t third __asm__("x2") = arguments[2];
	register int64_t fourth __asm__("x3") = arguments[3];
	register int64_t fifth __asm__("x4") = arguments[4];
	register int64_t sixth __asm__("x5") = arguments[5];

	__asm__ volatile("svc 0"
			 : "+r"(first)
			 : "r"(which), "r"(second), "r"(third), "r"(fourth), "r"(fifth), "r"(sixth)
			 : "memory");
	return first;
#endif
}

static int is_error(int64_t result)
{
	return result < 0 && result >= -4095;
}

static int is_tolerated(const struct step *step, int64_t error)
{
	return error < 128 && (step->tolerated[error / 64] >> (error % 64) & 1);
}

static int64_t insist(int64_t number, const int64_t *arguments)
{
	int64_t result;
	int tries = 0;

	do
		result = call(number, arguments);
	while (result == -EINTR || (result == -EAGAIN && number == NR_OPENAT2 && ++tries < TRIES));
	return result;
}

static _Noreturn void end(const struct program *program, uint32_t label, int64_t error)
{
	const struct report report = {label, (int32_t)error};
	const int64_t report_to[ARGUMENTS] = {program->error_fd, (int64_t)&report, sizeof report, 0, 0, 0};
	const int64_t code[ARGUMENTS] = {FAILED, 0, 0, 0, 0, 0};

	call(NR_WRITE, report_to);
	for (;;)
		call(NR_EXIT_GROUP, code);
}

static _Noreturn void run(const struct program *program)
{
	int64_t registers[REGISTERS];

	for (int32_t at = 0; at < program->count; at++) {
		const struct step *step = &program->steps[at];
		int64_t arguments[ARGUMENTS];
		int64_t result = 0;

		for (int i = 0; i < ARGUMENTS; i++)
			arguments[i] = step->registers >> i & 1 ? registers[step->arguments[i] % REGISTERS] : step->arguments[i];
		switch ((enum kind)step->kind) {
		case CALL:
			result = insist(step->number, arguments);
			if (is_error(result)) {
				if (!is_tolerated(step, -result))
					end(program, step->label, -result);
				at += step->skip;
			}
			break;
		case STORE:
			*(volatile int32_t *)arguments[0] = (int32_t)arguments[1];
			break;
		case LOAD:
			result = *(const volatile int64_t *)arguments[0] & arguments[1];
			break;
		case WHEN:
			if (arguments[0] == arguments[1])
				at += step->skip;
			break;
		case FAIL:
			end(program, step->label, arguments[0]);
		}
		if (step->keep >= 0)
			registers[step->keep % REGISTERS] = result;
	}
	end(program, 0, 0);
}

/* Clones by clone3(2) with `clone_args`; the new process carries out the program and never returns. Its pid, or -errno. */
int64_t nestbed_spawn(const struct program *program, const void *clone_args, int64_t size)
{
	const int64_t arguments[ARGUMENTS] = {(int64_t)clone_args, size, 0, 0, 0, 0};
	const int64_t pid = call(NR_CLONE3, arguments);

	if (pid == 0)
		run(program);
	return pid;
}

/* An address in the memory the C library keeps for this thread: the kernel writes there whenever the thread has been interrupted
 * (rseq(2)), in a clone, too. */
int64_t nestbed_thread_memory(void)
{
	int64_t address;
#if defined(__x86_64__)
	__asm__("mov %%fs:0, %0" : "=r"(address));
#else
	__asm__("mrs %0, tpidr_el0" : "=r"(address));
#endif
	return address;
}
