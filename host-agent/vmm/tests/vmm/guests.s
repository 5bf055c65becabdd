# The guests of these tests, in the order in which they appear there.
# Each lies between NAME_begin and NAME_end; see `guest.rs` for how it starts.

# What guests do in common: `say` a character, and ways to end.
    .macro say character
    mov dx, 0x3f8
    mov al, \character
    out dx, al
    .endm
    .macro reset
    mov al, 0xfe
    out 0x64, al
77:  jmp 77b
    .endm

.pushsection .rodata

    .globl greeting_begin, greeting_end
greeting_begin:
    say 'h'
    say 'i'
    say 10
    reset
greeting_end:

    .globl halting_begin, halting_end
halting_begin:
    say '.'
    cli
    hlt
halting_end:

    .globl waiting_begin, waiting_end
waiting_begin:
    say '.'
    say 10
    sti
2:  hlt
    jmp 2b
waiting_end:

# Says numbers, four hexadecimal digits a line, counting up from 0.
    .globl counting_begin, counting_end
counting_begin:
    xor ebx, ebx
2:  mov esi, 4
    mov edi, ebx
3:  rol di, 4
    mov eax, edi
    and al, 15
    cmp al, 10
    jb 4f
    add al, 39
4:  add al, 48
    mov dx, 0x3f8
    out dx, al
    dec esi
    jnz 3b
    say 10
    inc ebx
    mov ecx, 5000
5:  dec ecx
    jnz 5b
    jmp 2b
counting_end:

    .globl falling_begin, falling_end
falling_begin:
    push 0
    push 0
    lidt [rsp]
    ud2
falling_end:

# Each instruction that is repaired, checked by the guest itself. `expect` says
# the character if ZF is set, and a question mark if it is not.
    .macro expect character
    mov al, \character
    mov cl, '?'
    cmovnz eax, ecx
    mov dx, 0x3f8
    out dx, al
    .endm
    .globl repaired_begin, repaired_end
repaired_begin:
    mov rsp, 0x200000
    # OSFXSR and OSXSAVE, x87 and SSE in XCR0.
    mov rax, cr4
    or rax, 0x40200
    mov cr4, rax
    xor ecx, ecx
    xor edx, edx
    mov eax, 3
    xsetbv
    # A count, of a register and of memory.
    mov rbx, 0xf0f00000000000ff
    popcnt rax, rbx
    cmp rax, 16
    expect 'p'
    xor ebx, ebx
    popcnt eax, ebx
    expect 'z'
    push rbx
    popcnt rcx, [rsp]
    expect 'm'
    # Sixteen bytes, exchanged and then not.
    mov edi, 0x300000
    mov rax, 1
    mov rdx, 2
    mov [rdi], rax
    mov [rdi + 8], rdx
    mov rbx, 3
    mov rcx, 4
    lock cmpxchg16b [rdi]
    expect 'x'
    cmp qword ptr [rdi + 8], 4
    expect 'c'
    xor eax, eax
    xor edx, edx
    cmpxchg16b [rdi]
    setz cl
    cmp rax, 3
    expect 'l'
    # A register of the extended state, saved, lost and restored.
    mov edi, 0x310000
    mov rbx, 0x1122334455667788
    mov [rdi + 0x1000], rbx
    movdqu xmm3, [rdi + 0x1000]
    mov eax, 3
    xor edx, edx
    xsave [rdi]
    movdqu xmm3, [rdi + 0x2000]
    mov eax, 3
    xor edx, edx
    xrstor [rdi]
    movdqu [rdi + 0x1000], xmm3
    cmp [rdi + 0x1000], rbx
    expect 's'
    fwait
    cmp rsp, 0x1ffff8
    expect 'f'
    say 10
    reset
repaired_end:

    .globl strange_begin, strange_end
strange_begin:
    crc32 eax, ebx
    reset
strange_end:

# To user mode by SYSRET and back by SYSCALL, twice, with registers and flags
# checked on both sides.
    .globl calling_begin, calling_end
calling_begin:
    mov rsp, 0x200000
    # User mode has two large pages: its code at 0x600000, its stack below.
    or qword ptr [0x9000], 4
    or qword ptr [0xa000], 4
    or qword ptr [0xb010], 4
    or qword ptr [0xb018], 4
    lea rsi, [rip + calling_user]
    mov edi, 0x600000
    mov ecx, 64
    rep movsb
    mov rax, cr3
    mov cr3, rax
    # Segments: kernel 0x10 and 0x18, user 0x23 and 0x2b, task 0x30.
    mov edi, 0x400000
    mov rax, 0x00af9b000000ffff
    mov [rdi + 0x10], rax
    mov rax, 0x00cf93000000ffff
    mov [rdi + 0x18], rax
    mov rax, 0x00cff3000000ffff
    mov [rdi + 0x20], rax
    mov rax, 0x00affb000000ffff
    mov [rdi + 0x28], rax
    mov rax, 0x0000894110000067
    mov [rdi + 0x30], rax
    mov qword ptr [rdi + 0x38], 0
    mov qword ptr [0x411004], 0x1f0000
    push 0x400000
    sub rsp, 2
    mov word ptr [rsp], 0x3f
    lgdt [rsp]
    mov ax, 0x30
    ltr ax
    # Every fault leads to `fault`.
    mov edi, 0x420000
    lea rax, [rip + calling_fault]
    mov ecx, 32
3:  mov [rdi], ax
    mov word ptr [rdi + 2], 0x10
    mov word ptr [rdi + 4], 0x8e00
    mov rdx, rax
    shr rdx, 16
    mov [rdi + 6], dx
    shr rdx, 16
    mov [rdi + 8], rdx
    add edi, 16
    dec ecx
    jnz 3b
    push 0x420000
    sub rsp, 2
    mov word ptr [rsp], 0x1ff
    lidt [rsp]
    # SYSCALL: enabled, segments, entry, flags.
    mov ecx, 0xc0000080
    rdmsr
    or eax, 1
    wrmsr
    mov ecx, 0xc0000081
    xor eax, eax
    mov edx, 0x001b0010
    wrmsr
    mov ecx, 0xc0000084
    mov eax, 0x700
    xor edx, edx
    wrmsr
    mov ecx, 0xc0000082
    lea rax, [rip + calling_entry]
    xor edx, edx
    wrmsr
    rdmsr
    lea rbx, [rip + calling_entry]
    cmp eax, ebx
    expect 'r'
    mov ecx, 0x600000
    mov r11, 0x202
    xor ebp, ebp
    mov rsp, 0x500000
    sysretq
calling_user:
    mov eax, 39
    syscall
    mov eax, 60
    syscall
calling_entry:
    mov r8, cs
    mov r9, rsp
    mov rsp, 0x200000
    inc ebp
    cmp ebp, 2
    je 4f
    mov r15, rcx
    mov r14, r11
    cmp eax, 39
    expect 'a'
    cmp r8, 0x10
    expect 'k'
    cmp r9, 0x500000
    expect 's'
    mov ebx, 0x600007
    cmp r15, rbx
    expect 'c'
    pushfq
    pop rax
    test eax, 0x200
    expect 'i'
    mov rcx, r15
    mov r11, r14
    mov rsp, r9
    sysretq
4:  cmp eax, 60
    expect 'b'
    say 10
    reset
calling_fault:
    say '!'
    say 10
    reset
calling_end:

# Makes the accesses of the table behind it (see `script.rs`), for ever. An entry:
# address, value, kind of access, and whether the value is to be another each time.
    .globl hostile_begin, hostile_end
hostile_begin:
    lea r14, [rip + hostile_end]
    mov r13, [r14]
    add r14, 8
    mov r15, r13
    not r15
2:  mov rsi, r14
    mov r12, r13
3:  mov rdi, [rsi]
    mov rax, [rsi + 8]
    mov ecx, [rsi + 16]
    mov edx, [rsi + 20]
    add rsi, 24
    mov rbx, r15
    shl rbx, 13
    xor r15, rbx
    mov rbx, r15
    shr rbx, 7
    xor r15, rbx
    mov rbx, r15
    shl rbx, 17
    xor r15, rbx
    and rdx, r15
    xor rax, rdx
    cmp ecx, 0
    je 10f
    cmp ecx, 1
    je 11f
    cmp ecx, 2
    je 12f
    cmp ecx, 3
    je 13f
    cmp ecx, 4
    je 14f
    cmp ecx, 5
    je 15f
    mov edx, edi
    cmp ecx, 6
    je 16f
    in al, dx
    jmp 4f
10: mov [rdi], al
    jmp 4f
11: mov [rdi], ax
    jmp 4f
12: mov [rdi], eax
    jmp 4f
13: mov [rdi], rax
    jmp 4f
14: mov eax, [rdi]
    jmp 4f
15: mov al, [rdi]
    jmp 4f
16: out dx, al
4:  dec r12
    jnz 3b
    say '.'
    say 10
    jmp 2b
hostile_end:

.popsection
